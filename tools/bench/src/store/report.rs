//! Results, for people, for programs, and as a document.

use std::path::Path;

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde_json::{Value, json};

use super::cell::{Measured, Round};
use crate::Format;
use crate::evidence::Evidence;

fn side(round: &Round) -> Value {
    json!({
        "operations_per_second": round.rate(),
        "operations": round.operations,
        "seconds": round.seconds,
        "p50_us": round.p50_us,
        "p99_us": round.p99_us,
        "cpu_us_per_operation": round.cpu_us(),
        "device_bytes_per_byte": round.device_bytes,
        "device_bytes_per_byte_applied": round.device_bytes_applied,
        "resident_bytes": round.resident_bytes,
    })
}

/// Prints everything.
pub fn show(rows: &[Measured], device: &str, format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        let cells: Vec<Value> = rows
            .iter()
            .map(|row| {
                json!({
                    "cell": row.cell.name,
                    "ratio": row.ratio,
                    "raw": side(&row.raw),
                    "store": side(&row.store),
                    "system_calls_per_operation": row.calls.map(|(raw, store)| json!({ "raw": raw, "store": store })),
                })
            })
            .collect();
        let all = json!({ "device": device, "cells": cells });
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    println!("{device}");
    let mut table = Table::new();
    table.load_preset(NOTHING);
    table.set_header(HEAD);
    for row in rows {
        table.add_row(line(row));
    }
    println!("{table}");
    Ok(())
}

const HEAD: [&str; 10] = [
    "cell",
    "raw/s",
    "store/s",
    "ratio",
    "raw p50 p99 us",
    "store p50 p99 us",
    "cpu us raw store",
    "bytes/byte applied",
    "calls raw store",
    "RSS MiB",
];

fn line(row: &Measured) -> Vec<String> {
    let (raw, store) = (&row.raw, &row.store);
    vec![
        row.cell.name.clone(),
        format!("{:.0}", raw.rate()),
        format!("{:.0}", store.rate()),
        format!("{:.2}", row.ratio),
        format!("{:.0} {:.0}", raw.p50_us, raw.p99_us),
        format!("{:.0} {:.0}", store.p50_us, store.p99_us),
        format!("{:.1} {:.1}", raw.cpu_us(), store.cpu_us()),
        format!("{:.2} {:.2}", store.device_bytes, store.device_bytes_applied),
        row.calls.map_or("-".to_owned(), |(raw, store)| format!("{raw:.2} {store:.2}")),
        format!("{}", store.resident_bytes >> 20),
    ]
}

/// What is asked of cells: at least such a ratio, at most so many bytes when all is applied.
const TARGETS: [(&str, f64, Option<f64>); 9] = [
    ("4k-write-d1-to-appends", 0.8, None),
    ("4k-write-d32-burst", 1.5, None),
    ("4k-write-d32-sustained", 1.0, Some(3.2)),
    ("4k-read-d1", 0.9, None),
    ("4k-read-d8", 0.9, None),
    ("4k-read-d32", 0.9, None),
    ("4k-read-d128", 0.9, None),
    ("1m-write-d8-first", 0.85, Some(1.05)),
    ("1m-write-d8", 0.85, Some(1.05)),
];

/// Writes everything down, and beside what is asked for.
pub fn document(rows: &[Measured], device: &str, path: &Path) -> anyhow::Result<()> {
    let mut evidence = Evidence::begin("The chunk store beside the bare device")?;
    evidence.text(&format!(
        "{device}. Both sides through the same engine, in alternation, every write durable before it counts; the bare side\n\
         on extents that were written before. Medians of the rounds."
    ));
    let found = |name: &str| rows.iter().find(|row| row.cell.name == name);
    let targets = TARGETS.iter().filter_map(|(name, ratio, bytes)| Some((found(name)?, ratio, bytes)));
    let lines = targets.map(|(row, ratio, bytes)| {
        let (allowed, written) = match bytes {
            Some(bytes) => (format!("{bytes:.2}"), format!("{:.2}", row.store.device_bytes_applied)),
            None => ("-".to_owned(), "-".to_owned()),
        };
        vec![row.cell.name.clone(), format!("{ratio:.2}"), format!("{:.2}", row.ratio), allowed, written]
    });
    evidence
        .table(&["", "ratio to the bare device, at least", "measured", "bytes per byte, at most", "measured"], lines);
    evidence.table(&HEAD, rows.iter().map(line));
    evidence.write(path)
}
