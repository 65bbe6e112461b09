//! Reading the golden files (f64 values of an independent reference implementation; their format
//! is in `README.md`) and comparing with them.

use serde_json::Value;

/// Absolute tolerance of every comparison: both sides are f64, with sums in another order.
pub(crate) const TOLERANCE: f64 = 1e-9;

/// A golden file.
pub(crate) fn golden(name: &str) -> Value {
    let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect("golden file is part of the repository");
    serde_json::from_str(&text).expect("golden file is JSON")
}

/// The cases of a golden file.
pub(crate) fn cases(file: &Value) -> &[Value] {
    file["cases"].as_array().expect("cases is a list")
}

/// A number.
pub(crate) fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

/// Any nesting of lists, row-major.
pub(crate) fn flat(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(flat).collect(),
        other => vec![number(other)],
    }
}

/// A list of rows.
pub(crate) fn rows(value: &Value) -> Vec<Vec<f64>> {
    value.as_array().expect("a list of rows").iter().map(flat).collect()
}

/// A list of matrices.
pub(crate) fn matrices(value: &Value) -> Vec<Vec<Vec<f64>>> {
    value.as_array().expect("a list of matrices").iter().map(rows).collect()
}

/// Fails with the place of the first difference.
pub(crate) fn assert_close(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}: number of values");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= TOLERANCE, "{what}[{i}]: {f} instead of {e}");
    }
}
