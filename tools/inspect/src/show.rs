//! What is on one device.

use std::path::Path;

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use mdm_api::ids::VtreeId;
use sds_store::journal::scan::{Scanned, Scanner};
use sds_store::layout::{Geometry, PAGE, SUPER_COPIES, last_super_offset};
use sds_store::request::{Request, Verdict};
use sds_store::superblock::{Copy, SuperBlock, quorum};
use serde_json::{Value, json};

use crate::compare::{capture, layers};
use crate::image::{Image, OfflineStore};
use crate::{Format, say};

fn print(rows: &[Vec<(&str, Value)>], format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        let objects: Vec<Value> = rows
            .iter()
            .map(|row| row.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect())
            .collect();
        say(&serde_json::to_string_pretty(&objects)?)?;
        return Ok(());
    }
    let mut table = Table::new();
    table.load_preset(NOTHING);
    if let Some(first) = rows.first() {
        table.set_header(first.iter().map(|(key, _)| key.replace('_', " ").to_uppercase()));
    }
    for row in rows {
        table.add_row(row.iter().map(|(_, value)| match value {
            Value::String(text) => text.clone(),
            Value::Null => "-".to_owned(),
            other => other.to_string(),
        }));
    }
    say(&table.to_string())?;
    Ok(())
}

/// The copies of the super block: two have fixed places, which tell where the others are.
fn super_blocks(image: &Image) -> anyhow::Result<([u64; SUPER_COPIES], [Copy; SUPER_COPIES])> {
    let read = |offset| image.read(offset, PAGE).map_or(Copy::Bad, |page| SuperBlock::decode(&page));
    let (first, last) = (read(0), read(last_super_offset(image.size())));
    let offsets = [&first, &last].into_iter().find_map(|copy| match copy {
        Copy::Good(block) => Some(block.geometry.super_offsets),
        _ => None,
    });
    let offsets = match offsets {
        Some(offsets) => offsets,
        None => {
            let journal = sds_store::layout::default_journal_bytes(image.size());
            Geometry::new(image.size(), journal).map_or([0; SUPER_COPIES], |geometry| geometry.super_offsets)
        }
    };
    Ok((offsets, offsets.map(read)))
}

/// `inspect superblock`. True if the device can be opened by it.
pub fn superblock(device: &Path, format: Format) -> anyhow::Result<bool> {
    let image = Image::open(device)?;
    let (offsets, copies) = super_blocks(&image)?;
    let rows = offsets.iter().zip(&copies).map(|(offset, copy)| {
        let field = |get: fn(&SuperBlock) -> Value| match copy {
            Copy::Good(block) => get(block),
            _ => Value::Null,
        };
        let state = match copy {
            Copy::Good(_) => "valid".to_owned(),
            other => format!("{other:?}").to_lowercase(),
        };
        vec![
            ("offset", json!(offset)),
            ("state", json!(state)),
            ("sequence", field(|b| json!(b.sequence))),
            ("system", field(|b| json!(b.system.to_string()))),
            ("device", field(|b| json!(b.device.to_string()))),
            ("incarnation", field(|b| json!(b.incarnation.to_string()))),
            ("open_count", field(|b| json!(b.open_count))),
            ("checkpoint", field(|b| json!(b.checkpoint.generation))),
            ("journal_tail", field(|b| json!(b.checkpoint.tail))),
            ("tail_uncertain", field(|b| json!(b.tail_uncertain))),
            ("suspect", field(|b| json!(b.suspect))),
        ]
    });
    let rows: Vec<_> = rows.collect();
    print(&rows, format)?;
    Ok(quorum(&copies).chosen.is_some())
}

/// `inspect journal`. True if it ends as a journal should.
pub fn journal(device: &Path, format: Format) -> anyhow::Result<bool> {
    let image = Image::open(device)?;
    let (_, copies) = super_blocks(&image)?;
    let Some(block) = quorum(&copies).chosen else {
        anyhow::bail!("no super block can be believed: see 'inspect superblock'")
    };
    let (geometry, root) = (&block.geometry, &block.checkpoint);
    let ring = geometry.journal_bytes;
    let mut scanner = Scanner::new(ring, block.salt, root.tail, root.tail_chain, root.tail_incarnation);
    scanner.goes_on(block.resumed_at, block.open_count);
    let mut rows = Vec::new();
    let (mut fed, mut at) = (0, root.tail);
    loop {
        match scanner.advance() {
            Scanned::Frame(frame) => rows.push(vec![
                ("position", json!(frame.head.lsn)),
                ("bytes", json!(frame.head.total_bytes())),
                ("incarnation", json!(frame.head.incarnation)),
                ("durable_through", json!(frame.head.durable_through)),
                ("records", json!(frame.records.iter().map(|(record, _)| word(record)).collect::<Vec<_>>().join(" "))),
            ]),
            Scanned::NeedMore | Scanned::Ended | Scanned::Newer(_) if fed >= ring => break,
            Scanned::NeedMore | Scanned::Ended | Scanned::Newer(_) => {
                let step = (ring - fed).min(1 << 20);
                for (offset, length) in geometry.ring_pieces(at, step).into_iter().filter(|(_, length)| *length > 0) {
                    match image.read(offset, length) {
                        Ok(bytes) => scanner.feed(bytes),
                        Err(_) => scanner.feed_unreadable(length),
                    }
                }
                fed += step;
                at += step;
            }
        }
    }
    print(&rows, format)?;
    let end = scanner.end();
    if format == Format::Table {
        say(&format!("{} frames from {} to {}: {:?}", rows.len(), root.tail, end.lsn, end.verdict))?;
    }
    Ok(true)
}

/// A record in a word.
fn word(record: &sds_store::journal::record::Record) -> String {
    let text = format!("{record:?}");
    text.split([' ', '(', '{']).next().unwrap_or_default().to_owned()
}

/// `inspect verdict`. True if all that was acknowledged is there.
pub fn verdict(device: &Path, format: Format) -> anyhow::Result<bool> {
    let store = OfflineStore::open(device)?;
    let rows = store.recovered.pgs.iter().map(|pg| {
        vec![
            ("placement_group", json!(pg.pg.to_string())),
            ("promised_term", pg.promise.map_or(Value::Null, |term| json!(term.0))),
            ("state_through", pg.state.as_ref().map_or(Value::Null, |(seq, _)| json!(seq.0))),
            ("committed", json!(pg.committed.0)),
            ("entries_beyond", json!(pg.entries.len())),
            (
                "last_entry",
                pg.entries.last().map_or(Value::Null, |last| {
                    json!(format!("{}/{}", last.entry.version.term, last.entry.version.seq))
                }),
            ),
            ("layers", json!(pg.layer_count)),
        ]
    });
    let rows: Vec<_> = rows.collect();
    print(&rows, format)?;
    if format == Format::Table {
        let (verdict, before) = (explain(store.recovered.verdict), store.recovered.open_count - 1);
        say(&format!("Verdict: {verdict}. Opened {before} times before."))?;
    }
    Ok(store.recovered.verdict == Verdict::Clean)
}

/// What a verdict means, and what follows from it.
fn explain(verdict: Verdict) -> String {
    match verdict {
        Verdict::Clean => "clean: all that was ever acknowledged is here".to_owned(),
        Verdict::TailUncertain => {
            "the journal's end is uncertain: its last frame is not whole, most likely because it was \
                                   being written; after a total outage the other copies are heard before these lead"
                .to_owned()
        }
        Verdict::Suspect { why } => format!(
            "suspect: {why}; acknowledged data may be missing, so the copies here do not count until they were made anew \
             from others"
        ),
    }
}

/// `inspect space`.
pub fn space(device: &Path, format: Format) -> anyhow::Result<bool> {
    let space = OfflineStore::open(device)?.space();
    let rows = [
        ("units", space.aus_total, space.aus_free),
        ("chunk records", space.records_total, space.records_free),
        ("journal bytes", space.journal_total, space.journal_free),
    ];
    let rows = rows
        .iter()
        .map(|(what, total, free)| vec![("what", json!(what)), ("total", json!(total)), ("free", json!(free))]);
    print(&rows.collect::<Vec<_>>(), format)?;
    Ok(true)
}

/// `inspect chunks`.
pub fn chunks(device: &Path, vtree: Option<VtreeId>, chunk: Option<u64>, format: Format) -> anyhow::Result<bool> {
    let mut store = OfflineStore::open(device)?;
    let mut rows = Vec::new();
    for (pg, layer, version) in layers(&mut store)? {
        if vtree.is_some_and(|wanted| wanted != layer.chunk.vtree)
            || chunk.is_some_and(|wanted| wanted != layer.chunk.index)
        {
            continue;
        }
        let mut row = vec![
            ("placement_group", json!(pg.to_string())),
            ("vtree", json!(layer.chunk.vtree.to_string())),
            ("chunk", json!(layer.chunk.index)),
            ("snapshot", json!(layer.snap_seq.0)),
            ("term", json!(version.term.0)),
            ("seq", json!(version.seq.0)),
        ];
        if chunk.is_some() {
            let content = capture(&mut store, layer)?;
            let sums: Vec<String> =
                content.present.iter().zip(&content.checksums).map(|(b, sum)| format!("{b}:{sum:08x}")).collect();
            row.push(("zeroed", json!(content.zeroed.count())));
            row.push(("blocks", json!(sums.join(" "))));
        }
        rows.push(row);
    }
    print(&rows, format)?;
    Ok(true)
}

/// `inspect verify`. True if everything is readable and right.
pub fn verify(device: &Path, format: Format) -> anyhow::Result<bool> {
    let mut store = OfflineStore::open(device)?;
    let (mut good, mut rows) = (0_u64, Vec::new());
    for (pg, layer, _) in layers(&mut store)? {
        match store.ask(Request::Capture { layer }) {
            Ok(_) => good += 1,
            Err(error) => rows.push(vec![
                ("placement_group", json!(pg.to_string())),
                ("layer", json!(format!("{layer:?}"))),
                ("problem", json!(error.to_string())),
            ]),
        }
    }
    print(&rows, format)?;
    if format == Format::Table {
        say(&format!("{good} chunk layers good, {} bad.", rows.len()))?;
    }
    Ok(rows.is_empty())
}
