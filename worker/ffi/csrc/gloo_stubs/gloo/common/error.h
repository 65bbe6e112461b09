// Stands in for gloo's header of this name, which PyTorch's wheel lacks. c10d's Gloo header includes
// it and uses nothing from it.
#pragma once
