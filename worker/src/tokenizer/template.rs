//! Chat templates: Jinja as transformers renders it.
//!
//! Models ship templates written for Python's Jinja with `trim_blocks` and `lstrip_blocks`, Python's
//! string methods, and a few functions of transformers. minijinja renders them with the same settings,
//! the methods from minijinja-contrib, and those functions.

use std::path::Path;

use minijinja::{Environment, Error, ErrorKind, Value as JinjaValue, context};
use serde::Serialize;
use serde_json::Value;

use super::TokenizerError;

const NAME: &str = "chat";

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
    bos_token: Option<String>,
    eos_token: Option<String>,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// [`TokenizerError::Template`] with the line that is wrong.
    pub fn new(source: String, settings: &Value) -> Result<Self, TokenizerError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_filter("tojson", python_json);
        environment.add_template_owned(NAME, source).map_err(describe)?;
        let token = |key: &str| {
            let value = settings.get(key)?;
            value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
        };
        Ok(Self { environment, bos_token: token("bos_token"), eos_token: token("eos_token") })
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
        // An undefined `enable_thinking` differs from a false one: templates test `is defined`.
        let thinking = enable_thinking.map_or(JinjaValue::UNDEFINED, JinjaValue::from);
        let context = context! {
            messages => messages,
            add_generation_prompt => true,
            enable_thinking => thinking,
            bos_token => self.bos_token.as_deref().unwrap_or(""),
            eos_token => self.eos_token.as_deref().unwrap_or(""),
        };
        template.render(context).map_err(describe)
    }
}

/// The chat template of a model directory, if it has one: chat_template.jinja, else the one in
/// tokenizer_config.json (a text, or a list of which `default` is taken).
pub(super) fn load(dir: &Path, settings: &Value) -> Result<Option<ChatTemplate>, TokenizerError> {
    let path = dir.join("chat_template.jinja");
    let source = match std::fs::read_to_string(&path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => from_settings(settings),
        Err(source) => return Err(TokenizerError::Unreadable { path, source }),
    };
    source.map(|source| ChatTemplate::new(source, settings)).transpose()
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

/// `json.dumps` of Python with `ensure_ascii=False`, as transformers' `tojson`: a space after `:` and
/// `,`, keys in their order, nothing escaped for HTML.
fn python_json(value: JinjaValue) -> Result<String, Error> {
    let value = serde_json::to_value(&value)
        .map_err(|e| Error::new(ErrorKind::BadSerialization, "tojson").with_source(e))?;
    let mut text = String::new();
    write_python_json(&value, &mut text);
    Ok(text)
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
        ChatTemplate::new(source.to_owned(), &json!({"eos_token": "<|im_end|>"}))?.render(messages, thinking)
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
