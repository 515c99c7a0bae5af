//! Tables for people, JSON for programs.

use std::io::Write;

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde_json::{Map, Value};

use crate::rows::{Row, size};

/// How to show answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Prints a text and a line end. A reader that has seen enough (`| head`) is no failure.
pub fn say(text: &str) -> std::io::Result<()> {
    match writeln!(std::io::stdout(), "{}", text.trim_end_matches('\n')) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Shows objects.
pub fn print_rows(rows: &[Row], single: bool, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => {
            let objects: Vec<Value> = rows.iter().map(|row| Value::Object(object(row))).collect();
            let value = match (single, objects.first()) {
                (true, Some(first)) => first.clone(),
                _ => Value::Array(objects),
            };
            say(&serde_json::to_string_pretty(&value)?)?;
        }
        Format::Table if single => {
            for row in rows {
                say(&vertical(row).to_string())?;
            }
        }
        Format::Table if rows.is_empty() => say("none")?,
        Format::Table => say(&horizontal(rows).to_string())?,
    }
    Ok(())
}

/// Says what was done.
pub fn print_said(text: &str, fields: &[(&'static str, String)], format: Format) -> anyhow::Result<()> {
    match format {
        Format::Table => say(text)?,
        Format::Json => {
            let object: Map<String, Value> =
                fields.iter().map(|(key, value)| ((*key).to_owned(), Value::String(value.clone()))).collect();
            say(&serde_json::to_string_pretty(&Value::Object(object))?)?;
        }
    }
    Ok(())
}

fn object(row: &Row) -> Map<String, Value> {
    row.0.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
}

fn heading(key: &str) -> String {
    key.trim_end_matches("_bytes").trim_end_matches("_s").replace('_', " ").to_uppercase()
}

fn cell(key: &str, value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Number(number) if key.ends_with("_bytes") => size(number.as_u64().unwrap_or_default()),
        Value::Number(number) if key == "rebuild_remaining_s" => format!("{number} s"),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(|item| cell(key, item)).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => {
            let text = |key: &str| fields.get(key).and_then(Value::as_str);
            text("name").or_else(|| text("sdc")).unwrap_or("-").to_owned()
        }
        other => other.to_string(),
    }
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}

fn horizontal(rows: &[Row]) -> Table {
    let mut table = table();
    if let Some(first) = rows.first() {
        table.set_header(first.0.iter().map(|(key, _)| heading(key)));
    }
    for row in rows {
        table.add_row(row.0.iter().map(|(key, value)| cell(key, value)));
    }
    table
}

fn vertical(row: &Row) -> Table {
    let mut table = table();
    for (key, value) in &row.0 {
        table.add_row([heading(key), cell(key, value)]);
    }
    table
}
