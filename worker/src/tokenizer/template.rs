//! Chat templates: Jinja as transformers renders it.
//!
//! Models ship templates written for Python's Jinja with `trim_blocks` and `lstrip_blocks`, Python's
//! string methods, and a few functions of transformers. minijinja renders them with the same settings,
//! the methods from minijinja-contrib, and those functions.

use std::collections::BTreeMap;
use std::path::Path;

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value as JinjaValue};
use serde::Serialize;
use serde_json::Value;

use super::{TokenizerError, read_optional};

const NAME: &str = "chat";

/// Instructions after which a template is stopped: real ones need some thousands for a conversation.
const MAX_INSTRUCTIONS: u64 = 1_000_000;

/// Widest indentation of JSON.
const MAX_INDENT: usize = 64;

/// One turn of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Message<'a> {
    /// `system`, `user` or `assistant`.
    pub role: &'a str,
    /// The text.
    pub content: &'a str,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Special tokens by name (`bos_token`), as templates use them.
    special_tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Compiles a template; `settings` is tokenizer_config.json.
    ///
    /// # Errors
    /// [`TokenizerError::Template`] with the line that is wrong.
    pub fn new(source: &str, settings: &Value) -> Result<Self, TokenizerError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        // A template comes with a model: it must not be able to run for ever.
        environment.set_fuel(Some(MAX_INSTRUCTIONS));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment
            .add_function("strftime_now", |format: String| chrono::Local::now().format(&format).to_string());
        environment.add_filter("tojson", python_json);
        // In Jinja none and undefined are not iterable.
        environment.add_test("iterable", |value: JinjaValue| {
            !value.is_none() && !value.is_undefined() && value.try_iter().is_ok()
        });
        environment.add_template_owned(NAME, without_generation_marks(source)).map_err(describe)?;
        let settings = settings.as_object().into_iter().flatten();
        let special_tokens = settings
            .filter(|(key, _)| key.ends_with("_token"))
            .filter_map(|(key, value)| {
                let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
                Some((key.clone(), text.to_owned()))
            })
            .collect();
        Ok(Self { environment, special_tokens })
    }

    /// Renders a conversation up to where the model answers.
    ///
    /// # Errors
    /// [`TokenizerError::Template`] if the template raises an error.
    pub fn render(
        &self,
        messages: &[Message<'_>],
        enable_thinking: Option<bool>,
    ) -> Result<String, TokenizerError> {
        let template = self.environment.get_template(NAME).map_err(describe)?;
        let mut values: BTreeMap<&str, JinjaValue> = BTreeMap::new();
        for (name, token) in &self.special_tokens {
            values.insert(name, token.into());
        }
        values.insert("messages", JinjaValue::from_serialize(messages));
        values.insert("add_generation_prompt", true.into());
        // Defined and empty: templates test `tools is not none`.
        values.insert("tools", JinjaValue::from(()));
        values.insert("documents", JinjaValue::from(()));
        // An undefined `enable_thinking` differs from a false one: templates test `is defined`.
        if let Some(thinking) = enable_thinking {
            values.insert("enable_thinking", thinking.into());
        }
        template.render(values).map_err(describe)
    }
}

/// `{% generation %}` marks what a model is trained on. It changes nothing of the text, and Jinja proper
/// does not know it.
fn without_generation_marks(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        text.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let name = tag[..end].trim_matches(['{', '%', '-', '+', '}', ' ', '\n', '\t']);
        match name {
            "generation" => text.push_str(&tag[..end].replace(name, "if true")),
            "endgeneration" => text.push_str(&tag[..end].replace(name, "endif")),
            _ => text.push_str(&tag[..end]),
        }
        rest = &tag[end..];
    }
    text + rest
}

/// The chat template of a model directory, if it has one: chat_template.jinja, else the one in
/// tokenizer_config.json (a text, or a list of which `default` is taken).
pub(super) fn load(dir: &Path, settings: &Value) -> Result<Option<ChatTemplate>, TokenizerError> {
    let source = read_optional(dir, "chat_template.jinja")?.or_else(|| from_settings(settings));
    source.map(|source| ChatTemplate::new(&source, settings)).transpose()
}

fn from_settings(settings: &Value) -> Option<String> {
    match settings.get("chat_template")? {
        Value::String(text) => Some(text.clone()),
        Value::Array(named) => named
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|entry| entry.get("template")?.as_str())
            .map(str::to_owned),
        _ => None,
    }
}

/// `json.dumps` of Python, as transformers' `tojson`: by default a space after `:` and `,`, keys in their
/// order, nothing escaped for HTML or ASCII.
fn python_json(value: JinjaValue, options: Kwargs) -> Result<String, Error> {
    let failed = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, "tojson").with_source(e);
    let indent = options.get::<Option<usize>>("indent")?;
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    options.assert_all_used()?;
    let value = serde_json::to_value(&value).map_err(failed)?;
    let text = match indent {
        Some(width) => {
            let spaces = " ".repeat(width.min(MAX_INDENT));
            let mut text = Vec::new();
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value
                .serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))
                .map_err(failed)?;
            String::from_utf8_lossy(&text).into_owned()
        }
        None => {
            let mut text = String::new();
            write_python_json(&value, &mut text);
            text
        }
    };
    if !ascii {
        return Ok(text);
    }
    let escape = |c: char| -> String {
        let mut units = [0; 2];
        c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect()
    };
    Ok(text.chars().map(|c| if c.is_ascii() { c.to_string() } else { escape(c) }).collect())
}

fn write_python_json(value: &Value, out: &mut String) {
    match value {
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                out.push_str(if at == 0 { "" } else { ", " });
                write_python_json(item, out);
            }
            out.push(']');
        }
        Value::Object(entries) => {
            out.push('{');
            for (at, (key, item)) in entries.iter().enumerate() {
                out.push_str(if at == 0 { "" } else { ", " });
                out.push_str(&Value::String(key.clone()).to_string());
                out.push_str(": ");
                write_python_json(item, out);
            }
            out.push('}');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

fn describe(error: Error) -> TokenizerError {
    TokenizerError::Template(format!("{error:#}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(
        source: &str,
        messages: &[Message<'_>],
        thinking: Option<bool>,
    ) -> Result<String, TokenizerError> {
        ChatTemplate::new(source, &json!({"eos_token": "<|im_end|>"}))?.render(messages, thinking)
    }

    #[test]
    fn a_template_cannot_run_for_ever() {
        let endless = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}";
        let recursive = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
        for source in [endless, recursive, "{{ 'x' * 10000000000 }}"] {
            assert!(render(source, &[], None).is_err(), "{source}");
        }
        let wide = render("{{ [1] | tojson(indent=10000000000) }}", &[], None).unwrap();
        assert!(wide.len() < 1000, "{}", wide.len());
    }

    /// The constructs of Qwen3's template: slices, string methods, `is defined`, namespaces.
    const QWEN_LIKE: &str = r#"{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages[::-1] %}
    {%- if ns.last == -1 and message.role == 'user' and not message.content.startswith('<tool>') %}
        {%- set ns.last = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\n' + message.content.strip() + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"#;

    #[test]
    fn qwen_like_templates_render_to_the_newline() {
        let messages =
            [Message { role: "system", content: "Be brief." }, Message { role: "user", content: " 1+1? " }];
        let plain = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(render(QWEN_LIKE, &messages, None).unwrap(), plain);
        assert_eq!(render(QWEN_LIKE, &messages, Some(true)).unwrap(), plain);
        let quiet = format!("{plain}<think>\n\n</think>\n\n");
        assert_eq!(render(QWEN_LIKE, &messages, Some(false)).unwrap(), quiet);
    }

    #[test]
    fn templates_can_refuse_and_write_json() {
        let messages = [Message { role: "user", content: "é" }];
        let error =
            render("{{ raise_exception('no system role') }}", &messages, None).unwrap_err().to_string();
        assert!(error.contains("no system role"), "{error}");
        let text = render("{{ messages | tojson }}{{ eos_token }}", &messages, None).unwrap();
        assert_eq!(text, r#"[{"role": "user", "content": "é"}]<|im_end|>"#);
    }
}
