//! Declarations of the shim's C functions (csrc). Private: safe wrappers live in the other modules.
//!
//! A tensor crosses as libtch's `*mut C_tensor`, which is an `at::Tensor*`.

use std::ffi::{c_char, c_int, c_void};
use std::marker::PhantomData;

use tch::Tensor;
use torch_sys::C_tensor;

/// `G2rlStatus`.
#[repr(C)]
pub(crate) struct Status {
    pub(crate) code: i32,
    pub(crate) detail: i64,
    pub(crate) message: *mut c_char,
}

macro_rules! opaque {
    ($($name:ident),* $(,)?) => {$(
        /// An object of the shim, known here by address only.
        #[repr(C)]
        pub(crate) struct $name {
            _private: [u8; 0],
            // Owned by C++: neither Send, Sync nor Unpin by default.
            _marker: PhantomData<(*mut u8, std::marker::PhantomPinned)>,
        }
    )*};
}
opaque!(Store, Group, Work, InferenceGuard, Stream, Event, Graph, Decoder);

/// `TensorSlice`: borrowed tensors.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct TensorSlice {
    tensors: *const *mut C_tensor,
    count: usize,
}

/// The pointers of some tensors, alive as long as the tensors are borrowed.
pub(crate) struct Borrowed<'a> {
    pointers: Vec<*mut C_tensor>,
    _tensors: PhantomData<&'a Tensor>,
}

impl<'a> Borrowed<'a> {
    pub(crate) fn new<T: std::borrow::Borrow<Tensor>>(tensors: &'a [T]) -> Self {
        Self { pointers: tensors.iter().map(|t| pointer(t.borrow())).collect(), _tensors: PhantomData }
    }

    /// For a call that ends before `self` does.
    pub(crate) fn slice(&self) -> TensorSlice {
        TensorSlice { tensors: self.pointers.as_ptr(), count: self.pointers.len() }
    }
}

/// Takes over a tensor that the shim has made.
///
/// # Safety
/// `tensor` must come from a call of the shim that succeeded, and nobody else may own it.
pub(crate) unsafe fn owned(tensor: *mut C_tensor) -> Tensor {
    // SAFETY: by this function's own condition.
    unsafe { Tensor::from_ptr(tensor) }
}

/// The address of a tensor that may be absent.
pub(crate) fn optional(tensor: Option<&Tensor>) -> *mut C_tensor {
    tensor.map_or(std::ptr::null_mut(), pointer)
}

/// The address of the C++ tensor; valid while `tensor` lives.
pub(crate) fn pointer(tensor: &Tensor) -> *mut C_tensor {
    tensor.as_ptr().cast_mut()
}

/// `G2rlGroupOptions`.
#[repr(C)]
pub(crate) struct GroupOptions {
    pub(crate) nccl: i32,
    pub(crate) prefix: *const c_char,
    pub(crate) bind_host: *const c_char,
    pub(crate) rank: i32,
    pub(crate) world_size: i32,
    pub(crate) timeout_ms: i64,
}

/// `G2rlAdamW`.
#[repr(C)]
pub(crate) struct AdamW {
    pub(crate) params: TensorSlice,
    pub(crate) grads: TensorSlice,
    pub(crate) exp_avgs: TensorSlice,
    pub(crate) exp_avg_sqs: TensorSlice,
    pub(crate) step: i64,
    pub(crate) lr: f64,
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    pub(crate) eps: f64,
    pub(crate) weight_decay: f64,
}

/// `G2rlDecodeAttention`.
#[repr(C)]
pub(crate) struct DecodeAttention {
    pub(crate) query: *mut C_tensor,
    pub(crate) prompt_keys: *mut C_tensor,
    pub(crate) prompt_values: *mut C_tensor,
    pub(crate) prompt_row: *mut C_tensor,
    pub(crate) prompt_length: *mut C_tensor,
    pub(crate) keys: *mut C_tensor,
    pub(crate) values: *mut C_tensor,
    pub(crate) slot: *mut C_tensor,
    pub(crate) length: *mut C_tensor,
    pub(crate) scale: f64,
}

/// `G2rlFlashAttention`.
#[repr(C)]
pub(crate) struct FlashAttention {
    pub(crate) query: *mut C_tensor,
    pub(crate) key: *mut C_tensor,
    pub(crate) value: *mut C_tensor,
    pub(crate) query_starts: *mut C_tensor,
    pub(crate) key_starts: *mut C_tensor,
    pub(crate) longest_query: i64,
    pub(crate) longest_key: i64,
    pub(crate) causal: i32,
    pub(crate) scale: f64,
}

/// `G2rlDecoderWeights`.
#[repr(C)]
pub(crate) struct DecoderWeights {
    pub(crate) qkv: TensorSlice,
    pub(crate) bias: TensorSlice,
    pub(crate) output: TensorSlice,
    pub(crate) gate_up: TensorSlice,
    pub(crate) down: TensorSlice,
    pub(crate) input_norm: TensorSlice,
    pub(crate) post_norm: TensorSlice,
    pub(crate) query_norm: TensorSlice,
    pub(crate) key_norm: TensorSlice,
    pub(crate) embedding: *mut C_tensor,
    pub(crate) final_norm: *mut C_tensor,
    pub(crate) head: *mut C_tensor,
    pub(crate) cos: *mut C_tensor,
    pub(crate) sin: *mut C_tensor,
    pub(crate) heads: i64,
    pub(crate) kv_heads: i64,
    pub(crate) head_dim: i64,
    pub(crate) eps: f64,
}

/// `G2rlDecodeTimes`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DecodeTimes {
    pub(crate) products: f64,
    pub(crate) attention: f64,
    pub(crate) rows: f64,
}

/// `G2rlDecodeStep`.
#[repr(C)]
pub(crate) struct DecodeStep {
    pub(crate) tokens: *const i64,
    pub(crate) positions: *const i64,
    pub(crate) prompt_row: *const i64,
    pub(crate) prompt_length: *const i64,
    pub(crate) slot: *const i64,
    pub(crate) length: *const i64,
    pub(crate) batch: i64,
    pub(crate) prompt_keys: TensorSlice,
    pub(crate) prompt_values: TensorSlice,
    pub(crate) keys: TensorSlice,
    pub(crate) values: TensorSlice,
}

/// `G2rlNormBackward`.
#[repr(C)]
pub(crate) struct NormBackward {
    pub(crate) dy: *mut C_tensor,
    pub(crate) x: *mut C_tensor,
    pub(crate) weight: *mut C_tensor,
    pub(crate) residual: *mut C_tensor,
    pub(crate) dweight: *mut C_tensor,
    pub(crate) eps: f64,
}

/// `G2rlRotary`.
#[repr(C)]
pub(crate) struct Rotary {
    pub(crate) qkv: *mut C_tensor,
    pub(crate) query_norm: *mut C_tensor,
    pub(crate) key_norm: *mut C_tensor,
    pub(crate) cos: *mut C_tensor,
    pub(crate) sin: *mut C_tensor,
    pub(crate) heads: i64,
    pub(crate) kv_heads: i64,
    pub(crate) dim: i64,
    pub(crate) eps: f64,
}

/// `G2rlPackedAttention`.
#[repr(C)]
pub(crate) struct PackedAttention {
    pub(crate) turned: *mut C_tensor,
    pub(crate) qkv: *mut C_tensor,
    pub(crate) heads: i64,
    pub(crate) kv_heads: i64,
    pub(crate) dim: i64,
    pub(crate) scale: f64,
    pub(crate) starts: *const i64,
    pub(crate) lengths: *const i64,
    pub(crate) prefixes: *const i64,
    pub(crate) segments: i64,
}

/// `G2rlSampleRows`.
#[repr(C)]
pub(crate) struct SampleRows {
    pub(crate) logits: *mut C_tensor,
    pub(crate) temperature: f64,
    pub(crate) top_k: i64,
    pub(crate) top_p: f64,
    pub(crate) min_p: f64,
    pub(crate) uniforms: *const f64,
    pub(crate) residual: *mut C_tensor,
    pub(crate) slots: *const i64,
}

/// `G2rlResidualRows`.
#[repr(C)]
pub(crate) struct ResidualRows {
    pub(crate) logits: *mut C_tensor,
    pub(crate) temperature: f64,
    pub(crate) tokens: *const i64,
    pub(crate) weights: *const f32,
    pub(crate) residual: *mut C_tensor,
    pub(crate) slots: *const i64,
}

/// `G2rlMemoryStats`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct MemoryStats {
    pub(crate) allocated: u64,
    pub(crate) peak_allocated: u64,
    pub(crate) reserved: u64,
}

unsafe extern "C" {
    pub(crate) fn g2rl_message_free(message: *mut c_char);

    pub(crate) fn g2rl_store_host(
        host: *const c_char,
        port: u16,
        socket: c_int,
        timeout_ms: i64,
        out: *mut *mut Store,
    ) -> Status;
    pub(crate) fn g2rl_store_connect(
        host: *const c_char,
        port: u16,
        timeout_ms: i64,
        out: *mut *mut Store,
    ) -> Status;
    pub(crate) fn g2rl_store_port(store: *const Store) -> u16;
    pub(crate) fn g2rl_store_free(store: *mut Store);

    pub(crate) fn g2rl_group_new(
        store: *mut Store,
        options: *const GroupOptions,
        out: *mut *mut Group,
    ) -> Status;
    pub(crate) fn g2rl_group_abort(group: *mut Group) -> Status;
    pub(crate) fn g2rl_group_free(group: *mut Group);
    pub(crate) fn g2rl_group_all_reduce(
        group: *mut Group,
        tensor: *mut C_tensor,
        op: i32,
        out: *mut *mut Work,
    ) -> Status;
    pub(crate) fn g2rl_group_broadcast(
        group: *mut Group,
        tensor: *mut C_tensor,
        root: i64,
        out: *mut *mut Work,
    ) -> Status;
    pub(crate) fn g2rl_group_reduce(
        group: *mut Group,
        tensor: *mut C_tensor,
        root: i64,
        out: *mut *mut Work,
    ) -> Status;
    pub(crate) fn g2rl_group_all_gather(
        group: *mut Group,
        tensor: *mut C_tensor,
        parts: *mut *mut C_tensor,
    ) -> Status;
    pub(crate) fn g2rl_group_reduce_scatter(
        group: *mut Group,
        tensor: *mut C_tensor,
        op: i32,
        out: *mut *mut C_tensor,
    ) -> Status;
    pub(crate) fn g2rl_group_barrier(group: *mut Group, timeout_ms: i64) -> Status;
    pub(crate) fn g2rl_work_wait(work: *mut Work, timeout_ms: i64) -> Status;
    pub(crate) fn g2rl_work_is_completed(work: *mut Work, completed: *mut bool) -> Status;
    pub(crate) fn g2rl_work_free(work: *mut Work);

    pub(crate) fn g2rl_autograd_grad(
        outputs: TensorSlice,
        grad_outputs: TensorSlice,
        inputs: TensorSlice,
        gradients: *mut *mut C_tensor,
    ) -> Status;
    pub(crate) fn g2rl_autograd_backward(outputs: TensorSlice, grad_outputs: TensorSlice) -> Status;
    pub(crate) fn g2rl_set_grad(parameter: *mut C_tensor, gradient: *mut C_tensor) -> Status;
    pub(crate) fn g2rl_inference_mode_enter(guard: *mut *mut InferenceGuard) -> Status;
    pub(crate) fn g2rl_inference_mode_leave(guard: *mut InferenceGuard);

    pub(crate) fn g2rl_fused_adamw(call: *const AdamW) -> Status;
    pub(crate) fn g2rl_add_product(sum: *mut C_tensor, left: *mut C_tensor, right: *mut C_tensor) -> Status;
    pub(crate) fn g2rl_l2_norm(tensors: TensorSlice, norm: *mut f64) -> Status;
    pub(crate) fn g2rl_decode_attention(call: *const DecodeAttention, result: *mut *mut C_tensor) -> Status;
    pub(crate) fn g2rl_flash_forward(
        call: *const FlashAttention,
        output: *mut *mut C_tensor,
        normalizers: *mut *mut C_tensor,
    ) -> Status;
    pub(crate) fn g2rl_flash_backward(
        call: *const FlashAttention,
        doutput: *mut C_tensor,
        output: *mut C_tensor,
        normalizers: *mut C_tensor,
        gradients: *mut *mut C_tensor,
    ) -> Status;
    pub(crate) fn g2rl_rms_norm(
        x: *mut C_tensor,
        weight: *mut C_tensor,
        eps: f64,
        result: *mut *mut C_tensor,
    ) -> Status;
    pub(crate) fn g2rl_rms_norm_backward(call: *const NormBackward, result: *mut *mut C_tensor) -> Status;
    pub(crate) fn g2rl_rotary(call: *const Rotary, result: *mut *mut C_tensor) -> Status;
    pub(crate) fn g2rl_rotary_backward(
        call: *const Rotary,
        dturned: *mut C_tensor,
        dqkv: *mut C_tensor,
        dquery_norm: *mut C_tensor,
        dkey_norm: *mut C_tensor,
    ) -> Status;
    pub(crate) fn g2rl_gate(gate_up: *mut C_tensor, result: *mut *mut C_tensor) -> Status;
    pub(crate) fn g2rl_gate_backward(
        d: *mut C_tensor,
        gate_up: *mut C_tensor,
        dgate_up: *mut *mut C_tensor,
        gated: *mut *mut C_tensor,
    ) -> Status;
    pub(crate) fn g2rl_packed_attention(
        call: *const PackedAttention,
        result: *mut *mut C_tensor,
        normalizers: *mut *mut C_tensor,
    ) -> Status;
    pub(crate) fn g2rl_packed_attention_backward(
        call: *const PackedAttention,
        dout: *mut C_tensor,
        out: *mut C_tensor,
        normalizers: *mut C_tensor,
        dturned: *mut *mut C_tensor,
        dqkv: *mut *mut C_tensor,
    ) -> Status;
    pub(crate) fn g2rl_head_statistics(
        logits: *mut C_tensor,
        temperature: f64,
        targets: *const i64,
        logprobs: *mut f32,
        entropies: *mut f32,
        normalizers: *mut f32,
    ) -> Status;
    pub(crate) fn g2rl_head_gradient(
        logits: *mut C_tensor,
        temperature: f64,
        targets: *const i64,
        normalizers: *const f32,
        entropies: *const f32,
        logprob_gradients: *const f32,
        entropy_weights: *const f32,
    ) -> Status;
    pub(crate) fn g2rl_project_residuals(
        sums: *mut C_tensor,
        slots: *const i64,
        rows: i64,
        head: *mut C_tensor,
        result: *mut *mut C_tensor,
    ) -> Status;
    pub(crate) fn g2rl_decoder_supported(bf16: bool) -> bool;
    pub(crate) fn g2rl_decoder_new(weights: *const DecoderWeights, result: *mut *mut Decoder) -> Status;
    pub(crate) fn g2rl_decoder_free(decoder: *mut Decoder);
    pub(crate) fn g2rl_decoder_step(
        decoder: *mut Decoder,
        step: *const DecodeStep,
        logits: *mut *mut C_tensor,
        times: *mut DecodeTimes,
    ) -> Status;
    pub(crate) fn g2rl_sample_rows(
        call: *const SampleRows,
        tokens: *mut i64,
        logprobs: *mut f32,
        entropies: *mut f32,
    ) -> Status;
    pub(crate) fn g2rl_residual_rows(
        call: *const ResidualRows,
        logprobs: *mut f32,
        entropies: *mut f32,
    ) -> Status;
    #[cfg(test)]
    pub(crate) fn g2rl_exponential(x: *const f32, out: *mut f32, count: i64);

    pub(crate) fn g2rl_cuda_device_count() -> i32;
    pub(crate) fn g2rl_cuda_memory_stats(device: i32, out: *mut MemoryStats) -> Status;
    pub(crate) fn g2rl_cuda_reset_peak(device: i32) -> Status;
    pub(crate) fn g2rl_cuda_empty_cache() -> Status;
    pub(crate) fn g2rl_cuda_mem_get_info(device: i32, free: *mut u64, total: *mut u64) -> Status;
    pub(crate) fn g2rl_cuda_synchronize(device: i32) -> Status;
    pub(crate) fn g2rl_stream_get(device: i32, kind: i32, out: *mut *mut Stream) -> Status;
    pub(crate) fn g2rl_stream_make_current(stream: *mut Stream) -> Status;
    pub(crate) fn g2rl_stream_synchronize(stream: *mut Stream) -> Status;
    pub(crate) fn g2rl_stream_free(stream: *mut Stream);
    pub(crate) fn g2rl_event_new(out: *mut *mut Event) -> Status;
    pub(crate) fn g2rl_event_record(event: *mut Event, stream: *mut Stream) -> Status;
    pub(crate) fn g2rl_event_block(event: *mut Event, stream: *mut Stream) -> Status;
    pub(crate) fn g2rl_event_query(event: *mut Event, reached: *mut bool) -> Status;
    pub(crate) fn g2rl_event_synchronize(event: *mut Event) -> Status;
    pub(crate) fn g2rl_event_elapsed_ms(from: *mut Event, to: *mut Event, out: *mut f64) -> Status;
    pub(crate) fn g2rl_event_free(event: *mut Event);
    pub(crate) fn g2rl_graph_new(out: *mut *mut Graph) -> Status;
    pub(crate) fn g2rl_graph_capture_begin(graph: *mut Graph, pool: *mut Graph) -> Status;
    pub(crate) fn g2rl_graph_capture_end(graph: *mut Graph) -> Status;
    pub(crate) fn g2rl_graph_replay(graph: *mut Graph) -> Status;
    pub(crate) fn g2rl_graph_free(graph: *mut Graph);

    pub(crate) fn g2rl_gpu_module(device: i32, ptx: *const c_char, module: *mut *mut c_void) -> Status;
    pub(crate) fn g2rl_gpu_function(
        module: *mut c_void,
        name: *const c_char,
        function: *mut *mut c_void,
    ) -> Status;
    pub(crate) fn g2rl_gpu_launch(
        device: i32,
        function: *mut c_void,
        grid: *const u32,
        block: u32,
        shared_bytes: u32,
        arguments: *mut *mut c_void,
    ) -> Status;
}
