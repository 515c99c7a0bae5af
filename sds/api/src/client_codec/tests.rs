//! Promises of the client codec.

use super::*;
use mdm_api::ids::{PgId, StoragePoolId};
use proptest::prelude::*;

fn config() -> PgConfig {
    PgConfig {
        pg: PgId { pool: StoragePoolId(3), index: 4 },
        epoch: Epoch(9),
        term: Term(8),
        primary: Some(DeviceId(1)),
        primary_incarnation: ProcessIncarnation(77),
        isr: vec![DeviceId(1), DeviceId(2)],
        learners: vec![DeviceId(5)],
        previous_certified_dead: true,
        heir: Some(DeviceId(2)),
    }
}

fn request(operation: ClientOperation) -> ClientRequest {
    ClientRequest {
        tag: 1 << 50,
        handle: 7,
        pg: PgId { pool: StoragePoolId(3), index: 4 },
        epoch: Epoch(9),
        chunk: ChunkId { vtree: VtreeId(11), index: 12 },
        snap_seq: SnapSeq(13),
        operation,
    }
}

fn write(offset: u32, length: usize) -> ClientOperation {
    let data = Bytes::from((0..length).map(|i| (i * 31) as u8).collect::<Vec<_>>());
    let identity = RequestIdentity { request: RequestNumber(5), oldest_unacked: RequestNumber(3) };
    ClientOperation::Write { identity, offset, checksums: piece_checksums(offset, [&data]), data }
}

fn requests() -> Vec<ClientRequest> {
    let identity = RequestIdentity { request: RequestNumber(5), oldest_unacked: RequestNumber(3) };
    [
        ClientOperation::Read { offset: 5, length: 1 },
        ClientOperation::Status { offset: 0, length: CHUNK_BYTES as u32 },
        ClientOperation::Zero { identity, offset: 4096, length: 9000 },
        write(4095, 2),
        write(0, CHUNK_BYTES),
    ]
    .map(request)
    .into()
}

fn replies() -> Vec<ClientReply> {
    let data = Bytes::from(vec![9; 5000]);
    [
        Ok(ClientAnswer::Data { checksums: piece_checksums(100, [&data]), data: vec![data] }),
        Ok(ClientAnswer::Done),
        Ok(ClientAnswer::Status(vec![true, false, true])),
        Err(ClientError::WrongPrimary(None)),
        Err(ClientError::WrongPrimary(Some(Box::new(config())))),
        Err(ClientError::WrongPrimary(Some(Box::new(PgConfig { primary: None, heir: None, ..config() })))),
        Err(ClientError::Retry),
        Err(ClientError::StaleSnap(SnapSeq(4))),
        Err(ClientError::Fenced),
        Err(ClientError::ReadOnly),
        Err(ClientError::UnknownHandle),
        Err(ClientError::OutOfRange),
        Err(ClientError::Damaged),
        Err(ClientError::NoSpace),
        Err(ClientError::Medium),
        Err(ClientError::Forgotten),
    ]
    .into_iter()
    .map(|result| ClientReply { tag: 3, result })
    .collect()
}

#[test]
fn every_request_survives_its_encoding_and_no_other_length_decodes() {
    for request in requests() {
        let mut header = Vec::new();
        request.encode_header(&mut header);
        assert!(header.len() <= CLIENT_HEADER_BYTES_MAX);
        assert_eq!(ClientRequest::decode(&header, request.payload().clone()), Ok(request.clone()));
        for cut in 0..header.len() {
            let cut = ClientRequest::decode(&header[..cut], request.payload().clone());
            assert_eq!(cut, Err(ClientDecodeError::Short));
        }
        let longer = Bytes::from([request.payload().as_ref(), &[0]].concat());
        assert_eq!(ClientRequest::decode(&header, longer), Err(ClientDecodeError::BadPayload));
        header.push(0);
        let long = ClientRequest::decode(&header, request.payload().clone());
        assert_eq!(long, Err(ClientDecodeError::Long(1)));
    }
}

#[test]
fn every_reply_survives_its_encoding_and_no_other_length_decodes() {
    for reply in replies() {
        let mut header = Vec::new();
        reply.encode_header(&mut header);
        assert!(header.len() <= CLIENT_HEADER_BYTES_MAX);
        let payload = Bytes::from(reply.payload().concat());
        assert_eq!(ClientReply::decode(&header, payload.clone()), Ok(reply.clone()));
        for cut in 0..header.len() {
            assert_eq!(ClientReply::decode(&header[..cut], payload.clone()), Err(ClientDecodeError::Short));
        }
        let longer = Bytes::from([payload.as_ref(), &[0]].concat());
        assert_eq!(ClientReply::decode(&header, longer), Err(ClientDecodeError::BadPayload));
        header.push(0);
        assert_eq!(ClientReply::decode(&header, payload), Err(ClientDecodeError::Long(1)));
    }
}

#[test]
fn a_newer_version_is_refused_by_name() {
    let mut header = Vec::new();
    requests()[0].encode_header(&mut header);
    header[0] = CLIENT_VERSION + 1;
    let refused = Err(ClientDecodeError::UnknownVersion(CLIENT_VERSION + 1));
    assert_eq!(ClientRequest::decode(&header, Bytes::new()), refused);
}

#[test]
fn bytes_outside_of_a_chunk_are_refused() {
    let mut header = Vec::new();
    request(ClientOperation::Read { offset: CHUNK_BYTES as u32 - 1, length: 2 }).encode_header(&mut header);
    assert_eq!(ClientRequest::decode(&header, Bytes::new()), Err(ClientDecodeError::BadRange));
}

#[test]
fn a_configuration_that_breaks_an_invariant_is_refused() {
    let bad = PgConfig { learners: vec![DeviceId(1)], ..config() };
    let mut header = Vec::new();
    ClientReply { tag: 1, result: Err(ClientError::WrongPrimary(Some(Box::new(bad)))) }.encode_header(&mut header);
    assert_eq!(ClientReply::decode(&header, Bytes::new()), Err(ClientDecodeError::BadCount));
}

proptest! {
    #[test]
    fn checksums_do_not_depend_on_how_the_bytes_are_parted(
        offset in 0_u32..8192, length in 1_usize..20_000, cuts in proptest::collection::vec(0_usize..20_000, 0..5),
    ) {
        let data = Bytes::from((0..length).map(|i| (i % 251) as u8).collect::<Vec<_>>());
        let whole = piece_checksums(offset, [&data]);
        let blocks = BlockRange::touching(offset, length as u32).unwrap();
        prop_assert_eq!(whole.len(), usize::from(blocks.count()));
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(length)).chain([0, length]).collect();
        cuts.sort_unstable();
        let parts: Vec<Bytes> = cuts.windows(2).map(|pair| data.slice(pair[0]..pair[1])).collect();
        prop_assert_eq!(piece_checksums(offset, &parts), whole);
    }

    #[test]
    fn any_write_within_a_chunk_survives(offset in 0_u32..CHUNK_BYTES as u32, length in 1_usize..30_000) {
        let length = length.min(CHUNK_BYTES - offset as usize);
        let request = request(write(offset, length));
        let mut header = Vec::new();
        request.encode_header(&mut header);
        prop_assert_eq!(ClientRequest::decode(&header, request.payload().clone()), Ok(request));
    }

    #[test]
    fn any_read_answer_within_a_chunk_survives(offset in 0_u32..CHUNK_BYTES as u32, length in 1_usize..30_000) {
        let data = Bytes::from(vec![1; length.min(CHUNK_BYTES - offset as usize)]);
        let answer = ClientAnswer::Data { checksums: piece_checksums(offset, [&data]), data: vec![data.clone()] };
        let reply = ClientReply { tag: 2, result: Ok(answer) };
        let mut header = Vec::new();
        reply.encode_header(&mut header);
        prop_assert_eq!(ClientReply::decode(&header, data), Ok(reply));
    }

    #[test]
    fn random_bytes_are_refused_or_mean_one_message(
        bytes in proptest::collection::vec(any::<u8>(), 0..120), kind in 0_u8..28, payload in 0_usize..3,
    ) {
        let mut bytes = bytes;
        bytes.splice(..bytes.len().min(2), [CLIENT_VERSION, kind]);
        let payload = Bytes::from(vec![0; payload]);
        let mut again = Vec::new();
        if let Ok(request) = ClientRequest::decode(&bytes, payload.clone()) {
            request.encode_header(&mut again);
            prop_assert_eq!(&again, &bytes);
        }
        again.clear();
        if let Ok(reply) = ClientReply::decode(&bytes, payload) {
            reply.encode_header(&mut again);
            // The id of an absent primary is not looked at.
            prop_assert_eq!(again.len(), bytes.len());
        }
    }
}
