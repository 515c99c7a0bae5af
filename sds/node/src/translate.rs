//! Between the words of replicas and those of stores.

use std::sync::LazyLock;

use bytes::Bytes;
use sds_api::block::{BLOCK_BYTES, BlockRange, CHUNK_BLOCKS, CHUNK_BYTES};
use sds_api::checksum::crc32c;
use sds_api::peer::{BlocksData, LayerCopy};
use sds_replica as replica;
use sds_store::blockmap::BlockMap;
use sds_store::request::{LayerContent, Piece, PieceContent, RecoveredPg, Verdict};

static ZEROS: [u8; CHUNK_BYTES] = [0; CHUNK_BYTES];
static ZERO_CHECKSUM: LazyLock<u32> = LazyLock::new(|| crc32c(&ZEROS[..BLOCK_BYTES]));

/// The blocks of a read, or those that are bad.
pub(crate) fn read_done(pieces: Vec<Piece>) -> replica::StoreDone {
    let mut bad = Vec::new();
    let mut blocks = BlocksData { checksums: Vec::new(), data: Vec::with_capacity(pieces.len()) };
    for piece in pieces {
        match piece.content {
            PieceContent::Zeros => {
                blocks.checksums.extend(piece.blocks.iter().map(|_| *ZERO_CHECKSUM));
                blocks.data.push(Bytes::from_static(&ZEROS[..piece.blocks.bytes()]));
            }
            PieceContent::Data { bytes, checksums } => {
                blocks.checksums.extend(checksums);
                blocks.data.push(bytes);
            }
            PieceContent::Bad { .. } => bad.extend(piece.blocks.iter()),
        }
    }
    if bad.is_empty() { replica::StoreDone::Blocks(blocks) } else { replica::StoreDone::BadBlocks(bad) }
}

/// For each block of the range, whether it holds data.
pub(crate) fn status_done(map: BlockMap, blocks: BlockRange) -> replica::StoreDone {
    replica::StoreDone::Status(blocks.iter().map(|block| map.contains(block)).collect())
}

/// The content of a layer as it travels.
pub(crate) fn layer_copy(content: LayerContent) -> LayerCopy {
    let mut presence = [0_u64; 4];
    for block in content.present.iter() {
        presence[usize::from(block) / 64] |= 1 << (block % 64);
    }
    LayerCopy { version: content.version, presence, checksums: content.checksums, data: content.data }
}

/// The content of a layer as it is stored.
pub(crate) fn layer_content(copy: LayerCopy) -> LayerContent {
    let mut present = BlockMap::EMPTY;
    for block in 0..CHUNK_BLOCKS {
        if copy.presence[usize::from(block) / 64] & (1 << (block % 64)) != 0 {
            present.insert(block);
        }
    }
    let (version, checksums, data) = (copy.version, copy.checksums, copy.data);
    LayerContent { version, present, zeroed: BlockMap::EMPTY, checksums, data }
}

/// What the store found, in the replica's words.
pub(crate) fn verdict(verdict: Verdict) -> replica::Verdict {
    match verdict {
        Verdict::Clean => replica::Verdict::Clean,
        Verdict::TailUncertain => replica::Verdict::TailUncertain,
        Verdict::Suspect { .. } => replica::Verdict::Suspect,
    }
}

/// What the store has kept of a group, whose entries are all in memory.
pub(crate) fn recovered(group: RecoveredPg, found: Verdict) -> replica::Recovered {
    replica::Recovered {
        promised: group.promise.unwrap_or_default(),
        state: group.state,
        committed: group.committed,
        entries: group.entries.into_iter().map(|found| found.entry).collect(),
        verdict: verdict(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_the_same_after_a_journey() {
        let mut present = BlockMap::EMPTY;
        [0, 63, 64, 255].into_iter().for_each(|block| present.insert(block));
        let content = LayerContent {
            present,
            checksums: vec![1, 2, 3, 4],
            data: vec![Bytes::from(vec![7; 4 * BLOCK_BYTES])],
            ..LayerContent::default()
        };
        assert_eq!(layer_content(layer_copy(content.clone())), content);
    }

    #[test]
    fn what_was_never_written_reads_as_verified_zeros() {
        let blocks = BlockRange::new(3, 2).unwrap();
        let done = read_done(vec![Piece { blocks, content: PieceContent::Zeros }]);
        let replica::StoreDone::Blocks(data) = done else { panic!("not blocks") };
        assert!(data.verify(2));
    }
}
