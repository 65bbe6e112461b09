//! Every key of a configuration, with its default, unit, allowed values and meaning.
//!
//! In: the JSON Schema of [`RunConfig`], which is derived from the types and their doc comments. Out: a list of
//! [`Key`]s, which `config show`, `config reference` and `docs/configuration.md` print. Nothing is said here of any
//! key, so a key that is added to a section appears by itself.
//!
//! Invariant, by tests: every key and every choice has a meaning, and the ranges of the schema are those that
//! [`RunConfig::validate`] keeps.

mod markdown;
#[cfg(test)]
mod tests;
mod text;

use schemars::{Schema, schema_for};
use serde_json::{Map, Value};

pub use self::markdown::markdown;
pub use self::text::text;
use super::RunConfig;

/// Units by the last word of a key's name.
const UNITS: [(&str, &str); 4] =
    [("ms", "milliseconds"), ("s", "seconds"), ("tokens", "tokens"), ("chars", "characters")];

/// One of the values that a key allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// As it is written in TOML, without quotes.
    pub value: String,
    /// What it does.
    pub meaning: String,
}

/// A key of the configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// The section, such as `rollout` or `reward.parts[].http`.
    pub section: String,
    /// The name inside the section.
    pub name: String,
    /// `integer`, `number`, `string`, `boolean`, `list of ...`, or `choice`.
    pub kind: String,
    /// As it is written in TOML; `unset`, or `required` where there is none.
    pub default: String,
    /// The unit of the value; empty where it has none.
    pub unit: String,
    /// Its range; empty where every value of its kind is allowed.
    pub range: String,
    /// The values it allows, if they are named.
    pub choices: Vec<Choice>,
    /// What it does.
    pub meaning: String,
    /// The part of the schema that describes it.
    schema: Value,
}

impl Key {
    /// Section and name.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// Kind and range: what a value must be.
    #[must_use]
    pub fn allowed(&self) -> String {
        match self.range.is_empty() {
            true => self.kind.clone(),
            false => format!("{}, {}", self.kind, self.range),
        }
    }
}

/// A section and its keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Section {
    /// Its path, such as `rollout`.
    pub path: String,
    /// What it is about.
    pub meaning: String,
    /// A run need not have it, and by default has not.
    pub optional: bool,
    /// In the order of the type.
    pub keys: Vec<Key>,
}

/// The JSON Schema of a configuration, for editors.
#[must_use]
pub fn schema() -> Schema {
    schema_for!(RunConfig)
}

/// All sections, in the order of the types.
#[must_use]
pub fn sections() -> Vec<Section> {
    let root = Value::from(schema());
    let walk = Walk { definitions: root["$defs"].as_object().cloned().unwrap_or_default() };
    let mut found = Vec::new();
    walk.section("", &root, &root, &mut found);
    found.retain(|section| !section.keys.is_empty());
    found
}

struct Walk {
    definitions: Map<String, Value>,
}

impl Walk {
    /// What a reference stands for.
    fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        let name = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next());
        name.and_then(|name| self.definitions.get(name)).unwrap_or(schema)
    }

    /// The schema of the value where there is one, and whether it may be left out.
    fn set<'a>(&'a self, schema: &'a Value) -> (&'a Value, bool) {
        let is_null = |schema: &Value| schema["type"] == "null";
        match schema["anyOf"].as_array() {
            Some(any) if any.iter().any(is_null) => {
                (any.iter().find(|schema| !is_null(schema)).map_or(schema, |one| self.resolve(one)), true)
            }
            _ => (self.resolve(schema), false),
        }
    }

    /// Takes in the section at `path`; `place` describes it where it is used, `schema` by its type.
    fn section(&self, path: &str, place: &Value, schema: &Value, found: &mut Vec<Section>) {
        let at = found.len();
        let optional = place["default"].is_null() && place.get("anyOf").is_some();
        let meaning = sentence(&place["description"]);
        found.push(Section { path: path.to_owned(), meaning, optional, keys: Vec::new() });
        let Some(properties) = schema["properties"].as_object() else { return };
        for (name, place) in properties {
            let inner = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let (value, _) = self.set(place);
            if value["properties"].is_object() {
                self.section(&inner, place, value, found);
                continue;
            }
            let items = self.resolve(&value["items"]);
            if items["properties"].is_object() {
                self.section(&format!("{inner}[]"), place, items, found);
                continue;
            }
            let required = schema["required"].as_array().is_some_and(|all| all.iter().any(|one| one == name));
            let key = self.key(path, name, place, value, required);
            found[at].keys.push(key);
        }
    }

    fn key(&self, section: &str, name: &str, place: &Value, value: &Value, required: bool) -> Key {
        let (kind, choices) = match choices(value) {
            choices if choices.is_empty() => (self.kind(value), choices),
            choices => ("choice".to_owned(), choices),
        };
        let by_name =
            UNITS.iter().find(|(end, _)| name.rsplit('_').next() == Some(end)).map(|(_, unit)| *unit);
        let meaning = match sentence(&place["description"]) {
            text if text.is_empty() => sentence(&value["description"]),
            text => text,
        };
        Key {
            section: section.to_owned(),
            name: name.to_owned(),
            kind,
            default: default(place, required),
            unit: place["x-unit"].as_str().or(by_name).unwrap_or_default().to_owned(),
            range: range(place),
            choices,
            meaning,
            schema: place.clone(),
        }
    }

    fn kind(&self, schema: &Value) -> String {
        let one = |name: &str| match name {
            "array" => format!("list of {}s", self.kind(self.resolve(&schema["items"]))),
            name => name.to_owned(),
        };
        match &schema["type"] {
            Value::String(name) => one(name),
            Value::Array(names) => names
                .iter()
                .filter_map(Value::as_str)
                .find(|name| *name != "null")
                .map(one)
                .unwrap_or_default(),
            _ => "table".to_owned(),
        }
    }
}

/// The named values of an enum.
fn choices(schema: &Value) -> Vec<Choice> {
    let plain = schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let plain = plain.map(|value| Choice { value: value.to_owned(), meaning: String::new() });
    let documented = schema["oneOf"].as_array().into_iter().flatten().flat_map(|one| {
        let meaning = sentence(&one["description"]);
        // Several values, none with a meaning of its own.
        let without = one["enum"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let without = without.map(|value| Choice { value: value.to_owned(), meaning: String::new() });
        let fixed = one["const"].as_str().map(str::to_owned);
        let with_fields = one["properties"].as_object().and_then(|fields| {
            let (name, fields) = fields.iter().next()?;
            let fields: Vec<&str> = fields["properties"].as_object()?.keys().map(String::as_str).collect();
            Some(format!("{{ {name} = {{ {} = ... }} }}", fields.join(" = ..., ")))
        });
        let named = fixed.or(with_fields).map(|value| Choice { value, meaning });
        named.into_iter().chain(without).collect::<Vec<_>>()
    });
    plain.chain(documented).collect()
}

/// A doc comment as one line, without links into the code.
fn sentence(description: &Value) -> String {
    let text = description.as_str().unwrap_or_default();
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.replace("[`", "`").replace("`]", "`")
}

fn default(place: &Value, required: bool) -> String {
    match place.get("default") {
        _ if required => "required".to_owned(),
        None | Some(Value::Null) => "unset".to_owned(),
        Some(value) => written(value),
    }
}

/// A value as it is written in TOML.
pub(super) fn written(value: &Value) -> String {
    match value {
        Value::Null => "unset".to_owned(),
        Value::Array(items) => format!("[{}]", items.iter().map(written).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let set = fields.iter().filter(|(_, value)| !value.is_null());
            let fields = set.map(|(name, value)| format!("{name} = {}", written(value))).collect::<Vec<_>>();
            if fields.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", fields.join(", ")) }
        }
        Value::String(text) => toml::Value::String(text.clone()).to_string(),
        other => other.to_string(),
    }
}

fn range(place: &Value) -> String {
    let number = |name: &str| place.get(name).filter(|value| value.is_number());
    // Unsigned integers begin at 0, and end where their type does.
    let typed = place["format"].as_str().is_some_and(|format| format.starts_with("uint"));
    let least = number("minimum").filter(|least| !(typed && least.as_f64() == Some(0.0)));
    let most = number("maximum").filter(|_| !typed);
    let above = number("exclusiveMinimum");
    match (above, least, most) {
        (Some(above), _, Some(most)) => format!("above {above}, at most {most}"),
        (Some(above), _, None) => format!("above {above}"),
        (None, Some(least), Some(most)) => format!("{least} to {most}"),
        (None, Some(least), None) => format!("at least {least}"),
        (None, None, Some(most)) => format!("at most {most}"),
        (None, None, None) => String::new(),
    }
}
