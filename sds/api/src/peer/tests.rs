//! Messages between servers survive their encoding, and nothing else decodes.

use mdm_api::epoch::{AttachGeneration, RequestNumber, SnapSeq};
use mdm_api::ids::{SdcId, StoragePoolId, VolumeId, VtreeId};
use proptest::prelude::*;

use super::*;
use crate::block::ChunkId;
use crate::checksum::block_checksums;
use crate::entry::{EntryBody, WriteIdentity};

fn joined(encoded: &EncodedPeer) -> Bytes {
    Bytes::from(encoded.payload.concat())
}

/// The frame with data cut as a decoder returns it: in one piece.
fn normal(mut frame: PeerFrame) -> PeerFrame {
    let one_piece = |data: &mut Vec<Bytes>| {
        let all = data.concat();
        *data = if all.is_empty() { vec![] } else { vec![Bytes::from(all)] };
    };
    if let PeerFrame::Replica(message) = &mut frame {
        match &mut message.body {
            PeerBody::Copy { copy, .. } | PeerBody::Patch { copy, .. } => one_piece(&mut copy.data),
            PeerBody::Blocks { content: Some(content), .. } => one_piece(&mut content.data),
            _ => {}
        }
    }
    frame
}

fn layer() -> impl Strategy<Value = LayerKey> {
    any::<(u64, u64, u64)>().prop_map(|(vtree, index, snap)| LayerKey {
        chunk: ChunkId { vtree: VtreeId(vtree), index },
        snap_seq: SnapSeq(snap),
    })
}

fn range() -> impl Strategy<Value = BlockRange> {
    (0..250_u16, 1..4_u16).prop_map(|(first, count)| BlockRange::new(first, count).unwrap())
}

fn blocks(count: usize) -> impl Strategy<Value = BlocksData> {
    any::<u8>().prop_map(move |seed| {
        let data: Vec<Bytes> = (0..count).map(|i| Bytes::from(vec![seed ^ i as u8; BLOCK_BYTES])).collect();
        BlocksData { checksums: block_checksums(&data.concat()), data }
    })
}

fn entry() -> impl Strategy<Value = Entry> {
    let body = prop_oneof![
        (layer(), range()).prop_map(|(layer, blocks)| {
            let data = Bytes::from(vec![7; blocks.bytes()]);
            EntryBody::Write { layer, blocks, checksums: block_checksums(&data), data }
        }),
        (layer(), range()).prop_map(|(layer, blocks)| EntryBody::Zero { layer, blocks }),
        any::<u64>().prop_map(|epoch| EntryBody::EpochStart { epoch: Epoch(epoch) }),
        any::<u64>().prop_map(|vtree| EntryBody::DropVtree { vtree: VtreeId(vtree) }),
        layer().prop_map(|layer| EntryBody::Elsewhere { layer }),
    ];
    (any::<[u64; 8]>(), any::<bool>(), body).prop_map(|(n, identified, body)| Entry {
        pg: PgId { pool: StoragePoolId(n[0]), index: n[1] as u32 },
        version: Version { term: Term(n[1]), seq: Seq(n[2]) },
        identity: identified.then_some(WriteIdentity {
            volume: VolumeId(n[3]),
            sdc: SdcId(n[4]),
            session: AttachGeneration(n[5]),
            request: RequestNumber(n[6]),
            oldest_unacked: RequestNumber(n[7]),
        }),
        body,
    })
}

fn copy() -> impl Strategy<Value = LayerCopy> {
    (proptest::collection::btree_set(0..256_usize, 0..4), any::<(u64, u64)>()).prop_flat_map(|(set, (term, seq))| {
        blocks(set.len()).prop_map(move |content| {
            let mut presence = [0; 4];
            set.iter().for_each(|block| presence[block / 64] |= 1 << (block % 64));
            let version = Version { term: Term(term), seq: Seq(seq) };
            LayerCopy { version, presence, checksums: content.checksums, data: content.data }
        })
    })
}

fn tail() -> impl Strategy<Value = Tail> {
    let history = proptest::collection::vec(any::<(u64, u64)>(), 0..5);
    (any::<[u64; 4]>(), any::<(bool, bool)>(), history).prop_map(|(n, (complete, suspect), history)| Tail {
        last: Seq(n[0]),
        committed: Seq(n[1]),
        history: history.into_iter().map(|(term, first)| TermStart { term: Term(term), first: Seq(first) }).collect(),
        complete,
        suspect,
        grant: CreditGrant { aus: n[2], journal_bytes: n[3] },
    })
}

fn body() -> impl Strategy<Value = PeerBody> {
    let n = any::<[u64; 4]>;
    let layers = proptest::collection::vec(layer(), 0..5);
    let versions = proptest::collection::vec((layer(), any::<(u64, u64)>()), 0..5);
    prop_oneof![
        n().prop_map(|n| PeerBody::Activate { ask: n[0], epoch: Epoch(n[1]) }),
        (any::<u64>(), tail()).prop_map(|(ask, tail)| PeerBody::Tail { ask, tail }),
        n().prop_map(|n| PeerBody::Refused { promised: Term(n[0]), epoch: Epoch(n[1]) }),
        n().prop_map(|n| PeerBody::AskStream { stream: n[0] }),
        n().prop_map(|n| PeerBody::Follow { stream: n[0], after: Seq(n[1]), commit: Seq(n[2]) }),
        (n(), proptest::collection::vec(any::<u8>(), 0..99)).prop_map(|(n, state)| PeerBody::Reset {
            stream: n[0],
            through: Version { term: Term(n[1]), seq: Seq(n[2]) },
            state: Bytes::from(state),
        }),
        (n(), proptest::collection::vec(entry(), 0..4)).prop_map(|(n, entries)| PeerBody::Replicate {
            stream: n[0],
            number: n[1],
            commit: Seq(n[2]),
            entries,
        }),
        (n(), layer(), copy()).prop_map(|(n, layer, copy)| PeerBody::Copy { stream: n[0], number: n[1], layer, copy }),
        (n(), any::<[u64; 4]>(), layer(), copy()).prop_map(|(n, blocks, layer, copy)| PeerBody::Patch {
            stream: n[0],
            number: n[1],
            layer,
            base: Version { term: Term(n[2]), seq: Seq(n[3]) },
            blocks,
            copy,
        }),
        (n(), layers).prop_map(|(n, layers)| PeerBody::RemoveLayers { stream: n[0], number: n[1], layers }),
        n().prop_map(|n| PeerBody::Complete { stream: n[0], number: n[1] }),
        n().prop_map(|n| PeerBody::Durable {
            stream: n[0],
            through: Seq(n[1]),
            operations: n[2],
            grant: CreditGrant { aus: n[3], journal_bytes: n[0] },
        }),
        (n(), proptest::option::of(layer())).prop_map(|(n, after)| PeerBody::ListChunks { stream: n[0], after }),
        (n(), proptest::option::of(layer()), versions, any::<bool>()).prop_map(|(n, after, versions, last)| {
            let layers = versions.into_iter().map(|(l, (t, s))| (l, Version { term: Term(t), seq: Seq(s) })).collect();
            PeerBody::ChunkVersions { stream: n[0], after, layers, last }
        }),
        (n(), layer(), range()).prop_map(|(n, layer, blocks)| PeerBody::FetchBlocks {
            request: n[0],
            layer,
            blocks,
            commit: Seq(n[1]),
        }),
        (n(), proptest::option::of(blocks(2))).prop_map(|(n, content)| PeerBody::Blocks { request: n[0], content }),
        Just(PeerBody::Release),
    ]
}

fn frame() -> impl Strategy<Value = PeerFrame> {
    let groups = || {
        proptest::collection::vec(any::<(u64, u32, u64)>(), 0..5).prop_map(|list| {
            let group = |(pool, index, term)| (PgId { pool: StoragePoolId(pool), index }, Term(term));
            list.into_iter().map(group).collect::<Vec<_>>()
        })
    };
    prop_oneof![
        8 => (any::<[u64; 7]>(), body()).prop_map(|(n, body)| PeerFrame::Replica(PeerMessage {
            pg: PgId { pool: StoragePoolId(n[0]), index: n[1] as u32 },
            term: Term(n[2]),
            from: DeviceId(n[3]),
            to: DeviceId(n[4]),
            incarnation: ProcessIncarnation(n[5]),
            to_incarnation: ProcessIncarnation(n[6]),
            body,
        })),
        1 => (any::<[u64; 3]>(), groups()).prop_map(|(n, confirmed)| PeerFrame::Lease(LeaseMessage::Ask {
            from: SdsId(n[0]),
            incarnation: ProcessIncarnation(n[1]),
            sent_at: Nanos(n[2]),
            confirmed,
        })),
        1 => (any::<[u64; 5]>(), groups()).prop_map(|(n, exclude)| PeerFrame::Lease(LeaseMessage::Grant {
            from: SdsId(n[0]),
            incarnation: ProcessIncarnation(n[1]),
            to_incarnation: ProcessIncarnation(n[2]),
            sent_at: Nanos(n[3]),
            lease_ms: n[4],
            exclude,
        })),
    ]
}

proptest! {
    #[test]
    fn every_frame_survives_its_encoding(frame in frame()) {
        let encoded = frame.encode();
        prop_assert_eq!(PeerFrame::decode(&encoded.header, joined(&encoded)), Ok(normal(frame)));
    }

    #[test]
    fn no_truncation_and_no_extension_decodes(frame in frame()) {
        let encoded = frame.encode();
        let payload = joined(&encoded);
        for cut in 0..encoded.header.len() {
            prop_assert!(PeerFrame::decode(&encoded.header[..cut], payload.clone()).is_err());
        }
        if !payload.is_empty() {
            prop_assert!(PeerFrame::decode(&encoded.header, payload.slice(1..)).is_err());
        }
        let longer = [encoded.header.as_slice(), &[0]].concat();
        prop_assert_eq!(PeerFrame::decode(&longer, payload.clone()), Err(PeerDecodeError::Trailing));
        let more = Bytes::from([&payload[..], &[0]].concat());
        prop_assert_eq!(PeerFrame::decode(&encoded.header, more), Err(PeerDecodeError::PayloadMismatch));
    }

    #[test]
    fn random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..70_u8) {
        let _ = PeerFrame::decode(&bytes, Bytes::new());
        if bytes.len() > 2 {
            (bytes[0], bytes[1]) = (PEER_VERSION, kind);
            let _ = PeerFrame::decode(&bytes, Bytes::from(vec![0; 8192]));
        }
    }
}

#[test]
fn a_count_beyond_its_limit_is_refused_before_anything_is_allocated() {
    let frame = PeerFrame::Replica(PeerMessage {
        pg: PgId::default(),
        term: Term(1),
        from: DeviceId(1),
        to: DeviceId(2),
        incarnation: ProcessIncarnation(3),
        to_incarnation: ProcessIncarnation(4),
        body: PeerBody::RemoveLayers { stream: 1, number: 1, layers: vec![] },
    });
    let mut header = frame.encode().header;
    let at = header.len() - 4;
    header[at..].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(PeerFrame::decode(&header, Bytes::new()), Err(PeerDecodeError::TooMany(u32::MAX)));
}

#[test]
fn a_newer_version_is_refused_by_name() {
    assert_eq!(PeerFrame::decode(&[2, 1], Bytes::new()), Err(PeerDecodeError::UnknownVersion(2)));
}
