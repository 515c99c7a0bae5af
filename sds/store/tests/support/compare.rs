//! What was found on a device against what must be there.

use std::collections::BTreeMap;

use bytes::Bytes;
use mdm_api::epoch::{Seq, SnapSeq, Version};
use sds_api::block::{BlockRange, LayerKey};
use sds_api::entry::EntryBody;
use sds_store::request::{Answer, PieceContent, Recovered, RecoveredPg, Request, Verdict};

use super::Machine;
use super::model::{BLOCKS, Cell, Content, PgModel, pg, value_of};

pub fn state_bytes(value: u64) -> Bytes {
    Bytes::from(value.to_le_bytes().repeat(10 + value as usize % 300))
}

pub fn recovered_pg(recovered: &Recovered, index: u32) -> RecoveredPg {
    let found = recovered.pgs.iter().find(|found| found.pg == pg(index)).cloned();
    found.unwrap_or(RecoveredPg {
        pg: pg(index),
        promise: None,
        state: None,
        committed: Seq(0),
        highest_applied: Version::default(),
        entries: Vec::new(),
        layer_count: 0,
    })
}

/// Compares promise, state and entries; returns the last entry that is there.
pub fn compare_log(recovered: &Recovered, index: u32, model: &PgModel) -> Result<Seq, String> {
    if matches!(recovered.verdict, Verdict::Suspect { .. }) {
        return Err(format!("suspect without cause: {:?}", recovered.verdict));
    }
    let found = recovered_pg(recovered, index);
    let promise = found.promise.map_or(0, |term| term.0);
    if promise < model.promise.0 || promise > model.promise.1 {
        return Err(format!("group {index}: promise {promise}, not {:?}", model.promise));
    }
    let (through, state) = found.state.clone().unwrap_or_default();
    let possible = std::iter::once(&model.state).chain(&model.state_sent);
    let known = |(seq, value): &(Seq, u64)| {
        (*seq, if *seq == Seq(0) && *value == 0 { Bytes::new() } else { state_bytes(*value) })
    };
    if !possible.map(known).any(|known| known == (through, state.clone())) {
        return Err(format!("group {index}: state through {through}, sent {:?} {:?}", model.state, model.state_sent));
    }
    if found.committed > model.committed {
        return Err(format!("group {index}: committed {} beyond {}", found.committed, model.committed));
    }
    let mut last = through;
    for recovered in &found.entries {
        let (seq, entry) = (recovered.entry.version.seq, &recovered.entry);
        if seq != last.next() {
            return Err(format!("group {index}: entry {seq} after {last}"));
        }
        let Some(sent) = model.entries.get(&seq) else { return Err(format!("group {index}: unknown entry {entry:?}")) };
        let same = if recovered.resident {
            entry == sent
        } else {
            let mut bare = sent.clone();
            if let EntryBody::Write { data, .. } = &mut bare.body {
                *data = Bytes::new();
            }
            entry.version == sent.version && *entry == bare
        };
        if !same {
            return Err(format!("group {index}: entry {seq} differs: {:?} {:?}", entry.version, sent.version));
        }
        last = seq;
    }
    if last < model.acked {
        return Err(format!("group {index}: acknowledged {}, found {last}", model.acked));
    }
    Ok(last)
}

/// What is not in memory of the entries is where the store says it is.
pub fn compare_payloads(
    machine: &mut Machine,
    recovered: &Recovered,
    index: u32,
    model: &PgModel,
) -> Result<(), String> {
    for found in recovered_pg(recovered, index).entries.iter().filter(|found| !found.resident) {
        let seq = found.entry.version.seq;
        match machine.call(Request::ReadEntry { pg: pg(index), seq }) {
            Ok(Answer::Entry(entry)) if Some(&entry) == model.entries.get(&seq) => {}
            other => return Err(format!("group {index}: entry {seq} reads as {:?}", other.err())),
        }
    }
    Ok(())
}

pub fn compare_read(
    expected: &BTreeMap<LayerKey, Content>,
    key: LayerKey,
    pieces: Vec<sds_store::request::Piece>,
) -> Result<(), String> {
    let mut cells = vec![None; usize::from(BLOCKS)];
    for snap in (0..=key.snap_seq.0).rev() {
        let Some(content) = expected.get(&LayerKey { snap_seq: SnapSeq(snap), ..key }) else { continue };
        cells.iter_mut().zip(&content.cells).for_each(|(cell, older)| *cell = cell.or(*older));
    }
    let mut next = 0;
    for piece in pieces {
        if piece.blocks.first() != next {
            return Err(format!("{key:?}: a gap before {:?}", piece.blocks));
        }
        next = piece.blocks.end();
        for (index, block) in piece.blocks.iter().enumerate() {
            let wanted: Option<Cell> = cells[usize::from(block)];
            let right = match (&piece.content, wanted) {
                (PieceContent::Zeros, None | Some(Cell::Zero)) => true,
                (PieceContent::Data { bytes, .. }, Some(Cell::Value(value))) => {
                    value_of(&bytes[index * 4096..(index + 1) * 4096]) == value
                }
                _ => false,
            };
            if !right {
                return Err(format!("{key:?} block {block}: wanted {wanted:x?}, got {:x?}", short(&piece.content)));
            }
        }
    }
    Ok(())
}

fn short(content: &PieceContent) -> String {
    match content {
        PieceContent::Data { bytes, .. } => format!("data {:x?}", &bytes[..8]),
        other => format!("{other:?}"),
    }
}

pub fn touched() -> BlockRange {
    BlockRange::new(0, BLOCKS).unwrap()
}

pub fn compare_contents(
    machine: &mut Machine,
    index: u32,
    expected: &BTreeMap<LayerKey, Content>,
    whole: bool,
) -> Result<(), String> {
    let Ok(Answer::Chunks(chunks)) = machine.call(Request::ListChunks { pg: pg(index) }) else {
        return Err("no list".into());
    };
    let wanted: Vec<(LayerKey, Version)> = expected.iter().map(|(key, content)| (*key, content.version)).collect();
    if chunks != wanted {
        let extra: Vec<_> = chunks.iter().filter(|chunk| !wanted.contains(chunk)).collect();
        let missing: Vec<_> = wanted.iter().filter(|chunk| !chunks.contains(chunk)).collect();
        return Err(format!("group {index}: layers {extra:?} should not be there, {missing:?} should"));
    }
    for (key, content) in expected {
        match machine.call(Request::Read { layer: *key, blocks: touched() }) {
            Ok(Answer::Read(pieces)) => compare_read(expected, *key, pieces)?,
            other => return Err(format!("{other:?}")),
        }
        if !whole {
            continue;
        }
        let Ok(Answer::Captured(captured)) = machine.call(Request::Capture { layer: *key }) else {
            return Err(format!("{key:?}: not captured"));
        };
        if Content::of(&captured) != *content {
            return Err(format!("{key:?}: captured something else"));
        }
    }
    Ok(())
}
