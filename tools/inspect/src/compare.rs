//! Comparing the copies of chunks on several devices.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mdm_api::epoch::Version;
use mdm_api::ids::PgId;
use sds_api::block::LayerKey;
use sds_store::request::{Answer, LayerContent, Request};
use serde_json::json;

use crate::image::OfflineStore;
use crate::{Format, say};

/// One copy of a chunk layer: where, and which version.
type Places = Vec<(usize, Version)>;

/// Every layer on a device.
pub fn layers(store: &mut OfflineStore) -> anyhow::Result<Vec<(PgId, LayerKey, Version)>> {
    let groups: Vec<PgId> = store.recovered.pgs.iter().map(|pg| pg.pg).collect();
    let mut layers = Vec::new();
    for pg in groups {
        if let Answer::Chunks(chunks) = store.ask(Request::ListChunks { pg })? {
            layers.extend(chunks.into_iter().map(|(layer, version)| (pg, layer, version)));
        }
    }
    Ok(layers)
}

/// All of one layer.
pub fn capture(store: &mut OfflineStore, layer: LayerKey) -> anyhow::Result<LayerContent> {
    match store.ask(Request::Capture { layer })? {
        Answer::Captured(content) => Ok(content),
        other => anyhow::bail!("unexpected answer of the store: {other:?}"),
    }
}

/// What is alike: blocks, and what they hold. How the data is cut into pieces is not.
fn content(content: &LayerContent) -> (&sds_store::blockmap::BlockMap, &[u32], Vec<u8>) {
    (&content.present, &content.checksums, content.data.concat())
}

/// `inspect compare`. True if all is alike.
pub fn compare(devices: &[PathBuf], copies: usize, format: Format) -> anyhow::Result<bool> {
    let mut stores = devices.iter().map(|path| OfflineStore::open(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut places: BTreeMap<(PgId, LayerKey), Places> = BTreeMap::new();
    for (index, store) in stores.iter_mut().enumerate() {
        store.commit_all();
        for (pg, layer, version) in layers(store)? {
            places.entry((pg, layer)).or_default().push((index, version));
        }
    }
    let mut problems = Vec::new();
    for ((pg, layer), places) in &places {
        problems.extend(problem(&mut stores, devices, *pg, *layer, places, copies)?);
    }
    report(places.len(), devices, &problems, format)?;
    Ok(problems.is_empty())
}

fn problem(
    stores: &mut [OfflineStore],
    devices: &[PathBuf],
    pg: PgId,
    layer: LayerKey,
    places: &Places,
    copies: usize,
) -> anyhow::Result<Option<String>> {
    let names =
        || places.iter().map(|(at, version)| format!("{} at {version:?}", devices[*at].display())).collect::<Vec<_>>();
    if places.len() != copies {
        // A layer that holds nothing is the same as no layer.
        let mut empty = true;
        for (at, _) in places {
            empty &= capture(&mut stores[*at], layer)?.present.is_empty();
        }
        let text = format!("{pg} {layer:?}: {} copies instead of {copies}: {}", places.len(), names().join(", "));
        return Ok((!empty).then_some(text));
    }
    let (first, rest) = (places[0], &places[1..]);
    if rest.iter().any(|(_, version)| *version != first.1) {
        return Ok(Some(format!("{pg} {layer:?}: versions differ: {}", names().join(", "))));
    }
    let left = capture(&mut stores[first.0], layer)?;
    for (at, _) in rest {
        let right = capture(&mut stores[*at], layer)?;
        if content(&left) != content(&right) {
            return Ok(Some(format!("{pg} {layer:?}: contents differ at one version: {}", names().join(", "))));
        }
    }
    Ok(None)
}

fn report(chunks: usize, devices: &[PathBuf], problems: &[String], format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        let devices: Vec<&Path> = devices.iter().map(PathBuf::as_path).collect();
        let value = json!({ "devices": devices, "chunks": chunks, "problems": problems });
        say(&serde_json::to_string_pretty(&value)?)?;
        return Ok(());
    }
    for problem in problems {
        say(problem)?;
    }
    match problems.len() {
        0 => say(&format!("{chunks} chunks on {} devices: all copies alike.", devices.len()))?,
        count => say(&format!("{chunks} chunks on {} devices: {count} differ.", devices.len()))?,
    }
    Ok(())
}
