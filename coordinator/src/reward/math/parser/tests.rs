//! What is read from formulas.

use super::*;

fn form(text: &str) -> String {
    expression(text).map_or("none".into(), |e| e.to_string())
}

#[test]
fn notation_becomes_structure() {
    for (text, expected) in [
        ("3\\frac{1}{2}", "7/2"),
        ("3 1/2", "7/2"),
        ("2\\frac{x}{2}", "2*(x)/(2)"),
        ("2xy", "2*x*y"),
        ("-x^2", "-1*(x)^(2)"),
        ("x^{-1}", "(x)^(-1)"),
        ("2^3^2", "(2)^((3)^(2))"),
        ("\\sqrt[3]{x}", "root3(x)"),
        ("\\sin^2 x\\cos 2x", "(sin(x))^(2)*cos(2*x)"),
        ("\\log_2 8", "log(8,2)"),
        ("f(x+1)", "f((x+1))"),
        ("x(x+1)", "x*(x+1)"),
        ("a_{37}", "a_37"),
        ("n!", "factorial(n)"),
        ("|x-1|", "abs((x+-1))"),
        ("\\frac12", "(1)/(2)"),
        ("\\frac ab", "(a)/(b)"),
        ("\\binom{n}{2}", "binom(n,2)"),
        ("90^\\circ", "90"),
        ("sqrt(2)/2", "(root2(2))/(2)"),
        ("e^{i\\pi}", "(e)^(i*pi)"),
        ("2 3", "none"),
        ("(1", "none"),
        ("", "none"),
        ("1+", "none"),
    ] {
        assert_eq!(form(text), expected, "{text}");
    }
    assert_eq!(parse(&super::super::lexer::tokenize("3 \\pm 2"), -1).unwrap().to_string(), "(3+-2)");
}

#[test]
fn depth_is_bounded() {
    for open in ["(", "{", "\\sqrt", "|", "2^", "\\frac1", "-(", "\\sin", "\\sum"] {
        assert!(expression(&open.repeat(900)).is_none(), "{open}");
    }
}
