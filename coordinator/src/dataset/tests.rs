//! Rows of every format become the same problems, and bad ones are named.

use std::path::Path;
use std::sync::Arc;

use g2rl_common::config::DataConfig;
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::*;

fn options(on_bad_row: BadRow) -> ReadOptions {
    ReadOptions { on_bad_row, ..ReadOptions::new(&DataConfig::from_train("unused")).unwrap() }
}

fn read_as(name: &str, text: &str, options: &ReadOptions) -> Result<Dataset, DatasetError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    Dataset::read(&Source::file(&path), options)
}

fn read(text: &str, options: &ReadOptions) -> Result<Dataset, DatasetError> {
    read_as("d.jsonl", text, options)
}

const GOOD: &str =
    "{\"id\":\"a\",\"problem\":\"1+1\",\"answer\":2}\n\n{\"problem\":\"2+2\",\"answer\":\"4\"}\n";

#[test]
fn rows_become_problems() {
    let dataset = read(GOOD, &options(BadRow::Error)).unwrap();
    assert_eq!(dataset.problems[0].answer, "2");
    assert_eq!(dataset.problems[1].id, "line-3");
    let one = ReadOptions { max_problems: Some(1), ..options(BadRow::Error) };
    assert_eq!(read(GOOD, &one).unwrap().problems.len(), 1);
    let array = "[{\"id\":\"a\",\"problem\":\"1+1\",\"answer\":2},{\"problem\":\"2+2\",\"answer\":\"4\"}]";
    let dataset = read_as("d.json", array, &options(BadRow::Error)).unwrap();
    assert_eq!((dataset.problems.len(), dataset.problems[1].id.as_str()), (2, "line-2"));
    // Lines that are only called .json.
    assert_eq!(read_as("d.json", GOOD, &options(BadRow::Error)).unwrap().problems.len(), 2);
}

#[test]
fn bad_rows_are_named_or_counted() {
    for (row, word) in [
        ("{\"problem\":\"x\"}", "answer is missing (the row has: problem)"),
        ("{\"problem\":\"\",\"answer\":\"1\"}", "problem is empty"),
        ("nonsense", "not a JSON object"),
        ("{\"id\":\"a\",\"problem\":\"x\",\"answer\":\"1\"}", "d.jsonl:1"),
        ("{\"problem\":[1],\"answer\":\"1\"}", "no conversation"),
        ("{\"problem\":{\"a\":1},\"answer\":\"1\"}", "not text"),
    ] {
        let text = format!("{GOOD}{row}\n");
        let error = read(&text, &options(BadRow::Error)).unwrap_err().to_string();
        assert!(error.contains("d.jsonl:4") && error.contains(word), "{error}");
        let dataset = read(&text, &options(BadRow::Skip)).unwrap();
        assert_eq!((dataset.problems.len(), dataset.skipped), (2, 1));
    }
    let imitation = ReadOptions { needs_solution: true, ..options(BadRow::Error) };
    assert!(read(GOOD, &imitation).unwrap_err().to_string().contains("solution"));
    assert!(read("", &options(BadRow::Error)).unwrap_err().to_string().contains("no usable problem"));
    let error = Dataset::read(&Source::file(Path::new("/nonexistent.jsonl")), &options(BadRow::Error));
    assert!(error.unwrap_err().to_string().contains("/nonexistent.jsonl"));
}

#[test]
fn columns_by_path_conversations_patterns_and_lengths() {
    let row = r#"{"prompt":[{"role":"system","content":"s"},{"role":"user","content":"What is 6*7?"}],
        "reward_model":{"ground_truth":"Six times seven.\n#### 42 "},"extra_info":{"index":7}}"#
        .replace('\n', " ");
    let long =
        format!("{{\"prompt\":\"{}\",\"reward_model\":{{\"ground_truth\":\"#### 1\"}}}}", "x".repeat(90));
    let config = DataConfig {
        columns: ColumnNames {
            id: "extra_info.index".into(),
            problem: "prompt".into(),
            answer: "reward_model.ground_truth".into(),
            ..ColumnNames::default()
        },
        answer_pattern: Some("#### (.+)".into()),
        max_problem_chars: Some(80),
        ..DataConfig::from_train("unused")
    };
    let dataset = read(&format!("{row}\n{long}"), &ReadOptions::new(&config).unwrap()).unwrap();
    assert_eq!((dataset.problems.len(), dataset.filtered), (1, 1));
    let problem = &dataset.problems[0];
    assert_eq!((problem.id.as_str(), problem.problem.as_str()), ("7", "What is 6*7?"));
    assert_eq!(problem.answer, "42");
    let none = ReadOptions::new(&DataConfig { answer_pattern: Some("x+".into()), ..config });
    let error = none.unwrap_err().to_string();
    assert!(error.contains("data.answer_pattern") && error.contains("exactly one group"), "{error}");
}

#[test]
fn the_last_box_of_a_solution() {
    let columns = ColumnNames { answer: "solution".into(), ..ColumnNames::default() };
    let boxed = Some("\\boxed{}".to_owned());
    let config = DataConfig { columns, answer_pattern: boxed, ..DataConfig::from_train("unused") };
    let options = ReadOptions::new(&config).unwrap();
    let row = r#"{"problem":"p","solution":"$\\boxed{1}$, no: $\\boxed{\\frac{1}{2}}$."}"#;
    let dataset = read(row, &options).unwrap();
    assert_eq!(dataset.problems[0].answer, r"\frac{1}{2}");
    let error = read(r#"{"problem":"p","solution":"none"}"#, &options).unwrap_err().to_string();
    assert!(error.contains("column solution has no \\boxed{}"), "{error}");
}

#[test]
fn tables_of_texts() {
    let text = "id,problem,answer,note\na,\"x, \"\"y\"\"\nz\",7,\n,p,8,n\n";
    let dataset = read_as("d.csv", text, &options(BadRow::Error)).unwrap();
    let first = &dataset.problems[0];
    assert_eq!((first.id.as_str(), first.problem.as_str(), first.answer.as_str()), ("a", "x, \"y\"\nz", "7"));
    assert_eq!(dataset.problems[1].id, "line-2");
    let error = read_as("d.csv", "problem,answer\na,b,c\n", &options(BadRow::Error)).unwrap_err().to_string();
    assert!(error.contains("d.csv is not a readable CSV file"), "{error}");
    let error = read_as("d.csv", "problem,answer\na,\n", &options(BadRow::Error)).unwrap_err().to_string();
    assert!(error.contains("d.csv:1") && error.contains("answer is missing"), "{error}");
}

/// Two row groups of `{problem, answer: int, extra: {level}}`.
fn write_parquet(path: &Path, compression: Compression) {
    let schema = "message m { REQUIRED BYTE_ARRAY problem (UTF8); REQUIRED INT64 answer; \
                  REQUIRED GROUP extra { OPTIONAL BYTE_ARRAY level (UTF8); } }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
    for group in 0..2 {
        let mut rows = writer.next_row_group().unwrap();
        let texts = |what: &str| [0, 1].map(|n| ByteArray::from(format!("{what} {group} {n}").into_bytes()));
        let mut column = rows.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&texts("problem"), None, None).unwrap();
        column.close().unwrap();
        let mut column = rows.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&[10 * group, 10 * group + 1], None, None).unwrap();
        column.close().unwrap();
        let mut column = rows.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&texts("level"), Some(&[1, 1]), None).unwrap();
        column.close().unwrap();
        rows.close().unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn parquet_files_and_directories() {
    let dir = tempfile::tempdir().unwrap();
    write_parquet(&dir.path().join("train-00000-of-00002.parquet"), Compression::SNAPPY);
    write_parquet(&dir.path().join("train-00001-of-00002.parquet"), Compression::ZSTD(Default::default()));
    std::fs::write(dir.path().join("test.jsonl"), GOOD).unwrap();
    let mut options = options(BadRow::Error);
    options.columns.solution = "extra.level".into();
    let source = Source { name: dir.path().display().to_string(), subset: None, split: "train".into() };
    let dataset = Dataset::read(&source, &options).unwrap();
    assert_eq!(dataset.problems.len(), 8);
    let third = &dataset.problems[2];
    assert_eq!((third.problem.as_str(), third.answer.as_str()), ("problem 1 0", "10"));
    assert_eq!((third.id.as_str(), third.solution.as_deref()), ("file-1-line-3", Some("level 1 0")));
    let test = Source { split: "test".into(), ..source };
    assert_eq!(Dataset::read(&test, &options).unwrap().problems.len(), 2);

    let broken = dir.path().join("broken.parquet");
    std::fs::write(&broken, "not parquet").unwrap();
    let error = Dataset::read(&Source::file(&broken), &options).unwrap_err().to_string();
    assert!(error.contains("broken.parquet is not a readable Parquet file"), "{error}");
}
