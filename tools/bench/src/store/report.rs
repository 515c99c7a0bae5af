//! Results, for people and for programs.

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use sds_disk::Geometry;
use serde_json::{Value, json};

use super::cell::{Measured, Round};
use crate::Format;

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
pub fn show(rows: &[Measured], engine: &str, device: &Geometry, format: Format) -> anyhow::Result<()> {
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
        let all = json!({ "engine": engine, "device": device.to_string(), "cells": cells });
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    println!("engine {engine}, device {device}");
    let mut table = Table::new();
    table.load_preset(NOTHING);
    table.set_header([
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
    ]);
    for row in rows {
        let (raw, store) = (&row.raw, &row.store);
        table.add_row([
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
        ]);
    }
    println!("{table}");
    Ok(())
}
