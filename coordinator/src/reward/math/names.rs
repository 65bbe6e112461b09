//! What words and commands stand for.

use super::expression::{Constant, Expression};

/// The function that a word or command names.
pub(super) fn function_name(word: &str) -> Option<&'static str> {
    Some(match word {
        "sin" => "sin",
        "cos" => "cos",
        "tan" | "tg" => "tan",
        "cot" | "ctg" => "cot",
        "sec" => "sec",
        "csc" => "csc",
        "arcsin" | "asin" => "arcsin",
        "arccos" | "acos" => "arccos",
        "arctan" | "arctg" | "atan" => "arctan",
        "sinh" => "sinh",
        "cosh" => "cosh",
        "tanh" => "tanh",
        "ln" => "ln",
        "log" | "lg" => "log",
        "exp" => "exp",
        "gcd" => "gcd",
        "lcm" => "lcm",
        "max" => "max",
        "min" => "min",
        "abs" => "abs",
        "floor" => "floor",
        _ => return None,
    })
}

/// Operators with bounds and a body, equal only to themselves.
pub(super) fn is_binder(command: &str) -> bool {
    matches!(command, "sum" | "prod" | "int" | "iint" | "oint" | "lim" | "bigcup" | "bigcap")
}

/// Marks over letters; with what they mark they are a name.
pub(super) fn is_accent(command: &str) -> bool {
    let lines = matches!(command, "overline" | "underline" | "overrightarrow" | "overarc" | "bar" | "vec");
    lines || matches!(command, "hat" | "widehat" | "tilde" | "dot")
}

/// Commands that do not start a factor: relations, operations on sets, signs, closing brackets.
pub(super) fn is_operator(command: &str) -> bool {
    let sets = matches!(command, "cup" | "cap" | "setminus" | "in" | "notin");
    let relations = matches!(command, "le" | "ge" | "lt" | "gt" | "ne" | "approx" | "equiv" | "sim");
    let arrows = matches!(command, "to" | "rightarrow" | "Rightarrow" | "implies");
    let others = matches!(command, "pm" | "mp" | "rfloor" | "rceil" | "dots" | "pmod" | "bmod" | "degree");
    sets || relations || arrows || others
}

/// Commands that change only the looks.
pub(super) fn is_layout(command: &str) -> bool {
    let size = command.trim_end_matches(['l', 'r', 'g']);
    let style = matches!(command, "displaystyle" | "textstyle" | "scriptstyle" | "limits" | "nolimits");
    let space =
        matches!(command, "hfill" | "hspace" | "hline" | "phantom" | "enspace" | "strut" | "mathstrut");
    let brackets = matches!(command, "left" | "right" | "middle" | "boxed" | "fbox");
    let fonts = matches!(command, "boldsymbol" | "mathcal" | "ensuremath");
    matches!(size, "bi" | "Bi") || style || space || brackets || fonts
}

/// Fonts: several letters in one of them are a text, such as a unit; one letter is a variable.
pub(super) fn is_font(command: &str) -> bool {
    let math = matches!(command, "mathrm" | "mathbf" | "mathit" | "mathsf" | "mathtt" | "operatorname");
    math || matches!(command, "rm" | "bf" | "it")
}

/// Commands whose argument is text.
pub(super) fn is_text(command: &str) -> bool {
    let text = matches!(command, "text" | "textbf" | "textrm" | "textit" | "textnormal" | "texttt");
    text || matches!(command, "mbox" | "hbox")
}

/// A letter's meaning.
pub(super) fn letter(letter: &str) -> Expression {
    match letter {
        "e" => Expression::Constant(Constant::E),
        "i" => Expression::Constant(Constant::I),
        _ => Expression::Variable(letter.to_owned()),
    }
}
