//! The bytes of the protocol, good and bad.

use proptest::prelude::*;

use super::option::{InfoRequest, MetaRequest, OptionHead, ReplyHead};
use super::*;

#[test]
fn a_compact_request_has_the_bytes_of_the_protocol() {
    let request = Request { flags: 1, kind: 1, cookie: 2, offset: 3, length: 4 };
    let bytes = request.encode();
    assert_eq!(bytes[..8], [0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1]);
    assert_eq!(bytes[8..16], 2u64.to_be_bytes());
    assert_eq!(Request::decode(&bytes, Headers::Simple), Ok(request));
    assert_eq!(Request::decode(&bytes, Headers::Extended), Err(BadMagic(REQUEST_MAGIC)));
}

#[test]
fn a_long_extent_is_cut_for_structured_replies_and_whole_for_extended_ones() {
    let request = Request { flags: 0, kind: 7, cookie: 9, offset: 0, length: u64::MAX };
    let extents = [
        Extent { length: 10, hole: false, zero: false },
        Extent { length: 1 << 40, hole: true, zero: true },
        Extent { length: 5, hole: false, zero: false },
    ];
    let mut out = Vec::new();
    block_status_reply(&mut out, Headers::Structured, &request, 1, &extents);
    assert_eq!(out.len(), 20 + 4 + 16, "the extent behind the cut is left out");
    assert_eq!(out[32..36], 0xffff_f000u32.to_be_bytes());
    out.clear();
    block_status_reply(&mut out, Headers::Extended, &request, 1, &extents);
    assert_eq!(out.len(), 32 + 8 + 48);
    assert_eq!(out[40 + 16..40 + 24], (1u64 << 40).to_be_bytes());
    assert_eq!(out[40 + 24..40 + 32], 3u64.to_be_bytes());
}

#[test]
fn errors_take_the_form_that_was_agreed() {
    let request = Request { flags: 0, kind: 0, cookie: 7, offset: 1, length: 1 };
    for (headers, length) in [(Headers::Simple, 16), (Headers::Structured, 26), (Headers::Extended, 38)] {
        let mut out = Vec::new();
        error_reply(&mut out, headers, &request, errno::INVAL);
        assert_eq!(out.len(), length);
    }
}

proptest! {
    #[test]
    fn requests_survive_a_round_trip(flags: u16, kind: u16, cookie: u64, offset: u64, length: u32) {
        let request = Request { flags, kind, cookie, offset, length: u64::from(length) };
        prop_assert_eq!(Request::decode(&request.encode(), Headers::Structured), Ok(request));
    }

    #[test]
    fn info_requests_survive_a_round_trip(name in "[a-z0-9äö]{0,40}", kinds in proptest::collection::vec(any::<u16>(), 0..5)) {
        let request = InfoRequest { name, kinds };
        prop_assert_eq!(InfoRequest::decode(&request.encode()), Some(request));
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Request::decode(&bytes, Headers::Simple);
        let _ = Request::decode(&bytes, Headers::Extended);
        let _ = OptionHead::decode(&bytes);
        let _ = ReplyHead::decode(&bytes);
        let _ = InfoRequest::decode(&bytes);
        let _ = MetaRequest::decode(&bytes);
        let _ = option::name(&bytes);
    }

    #[test]
    fn a_lying_count_is_refused(count in 3u32.., name in "[a-z]{0,8}") {
        let mut payload = Vec::new();
        payload.extend_from_slice(&(name.len() as u32).to_be_bytes());
        payload.extend_from_slice(name.as_bytes());
        payload.extend_from_slice(&count.to_be_bytes());
        payload.extend_from_slice(&[0; 8]);
        prop_assert_eq!(MetaRequest::decode(&payload), None);
    }
}
