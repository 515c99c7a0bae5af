//! Messages survive their encoding, and nothing else decodes.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::identity::{Envelope, Payload, Refusal, Start, StoreId};
use crate::members::{Member, Standing};
use crate::{MdmId, MdmRole, SystemId};

fn change() -> impl Strategy<Value = MembersChange> {
    let member = (any::<u64>(), any::<bool>(), any::<bool>(), vec("[a-z0-9.:]{0,20}", 0..3)).prop_map(
        |(store, manager, voter, addresses)| Member {
            store: StoreId(store),
            role: if manager { MdmRole::Manager } else { MdmRole::TieBreaker },
            standing: if voter { Standing::Voter } else { Standing::Learner },
            addresses,
        },
    );
    (1..u64::MAX, member, 0..4).prop_map(|(id, member, kind)| match kind {
        0 => MembersChange::Add { id: MdmId(id), member },
        1 => MembersChange::Promote { id: MdmId(id) },
        2 => MembersChange::Remove { id: MdmId(id) },
        _ => MembersChange::SetAddresses { id: MdmId(id), addresses: member.addresses },
    })
}

fn entry() -> impl Strategy<Value = Entry> {
    (1..9u64, 1..9u64, 0..4, vec(any::<u8>(), 0..40), change()).prop_map(|(index, term, kind, command, change)| {
        let mut entry = Entry { index, term, ..Default::default() };
        match kind {
            0 => {}
            1 => entry.data = command_data(&command).into(),
            _ if !change.is_about_votes() => entry.data = change_data(&change).into(),
            _ => {
                entry.set_entry_type(EntryType::EntryConfChangeV2);
                entry.context = change.encode().into();
            }
        }
        entry
    })
}

/// Any message that can be said on the wire. Numbers are small, so that they meet a small log.
pub(crate) fn any_message() -> impl Strategy<Value = Message> {
    let numbers = (0..6u64, 0..6u64, 0..12u64, 0..12u64, 0..6u64, 0..12u64);
    (0..TYPES.len(), numbers, any::<bool>(), vec(any::<u8>(), 0..20), vec(entry(), 0..4), any::<bool>()).prop_map(
        |(kind, (term, log_term, index, commit, commit_term, reject_hint), reject, context, mut entries, in_order)| {
            let mut message =
                Message { term, log_term, index, commit, commit_term, reject_hint, reject, ..Default::default() };
            message.set_msg_type(TYPES[kind].0);
            message.context = context.into();
            if TYPES[kind].0 == MessageType::MsgSnapshot {
                let voter = Member {
                    store: StoreId(1),
                    role: MdmRole::Manager,
                    standing: Standing::Voter,
                    addresses: Vec::new(),
                };
                let members = Members::bootstrap(MdmId(1 + index % 3), voter);
                let snapshot =
                    Snapshot { index, term: log_term, position: 0, members, state: Bytes::from_static(b"state") };
                let mut body = Vec::new();
                snapshot.encode_body(&mut body);
                message.set_snapshot(raft_snapshot(index, log_term, &snapshot.members, body.into()));
                return message;
            }
            if in_order {
                for (entry, index) in entries.iter_mut().zip(index + 1..) {
                    (entry.index, entry.term) = (index, entry.term.clamp(1, term.max(1)));
                }
                entries.sort_by_key(|entry| entry.term);
                for (entry, index) in entries.iter_mut().zip(index + 1..) {
                    entry.index = index;
                }
            }
            message.set_entries(entries.into());
            message
        },
    )
}

fn any_envelope() -> impl Strategy<Value = Envelope> {
    let payload = (0..3, vec(any::<u8>(), 0..50), any::<u64>()).prop_map(|(kind, bytes, nonce)| match kind {
        0 => Payload::Raft(bytes.into()),
        1 => Payload::Here,
        _ => Payload::Refused { reason: Refusal::RolledBack, start: Start { count: 3, nonce } },
    });
    (any::<[u64; 5]>(), 0..1u64 << 61, 0..1u64 << 61, payload).prop_map(|(raw, count, position, payload)| Envelope {
        system: SystemId(raw[0]),
        from: MdmId(raw[1]),
        to: MdmId(raw[2]),
        store: StoreId(raw[3]),
        start: Start { count, nonce: raw[4] },
        start_position: position / 2,
        position,
        payload,
    })
}

proptest! {
    #[test]
    fn messages_come_back_as_they_were(message in any_message()) {
        let bytes = encode(&message).unwrap();
        prop_assert_eq!(decode(&bytes, 0, 0).unwrap(), message);
        for end in 0..bytes.len() {
            prop_assert!(decode(&bytes[..end], 0, 0).is_err());
        }
    }

    #[test]
    fn envelopes_come_back_as_they_were(envelope in any_envelope()) {
        let bytes = envelope.encode();
        prop_assert_eq!(Envelope::decode(&bytes).unwrap(), envelope);
        for end in 0..bytes.len() {
            prop_assert!(Envelope::decode(&bytes[..end]).is_err());
        }
    }

    #[test]
    fn changes_come_back_as_they_were(change in change()) {
        let bytes = change.encode();
        prop_assert_eq!(MembersChange::decode(&bytes).unwrap(), change);
        for end in 0..bytes.len() {
            prop_assert!(MembersChange::decode(&bytes[..end]).is_err());
        }
    }

    #[test]
    fn random_bytes_harm_no_decoder(bytes in vec(any::<u8>(), 0..200), kind in 0..12u8) {
        let _ = decode(&bytes, 1, 2);
        let typed: Vec<u8> = std::iter::once(kind).chain(bytes.iter().copied()).collect();
        let _ = decode(&typed, 1, 2);
        let _ = Envelope::decode(&bytes);
        let _ = Envelope::decode(&crate::codec::seal(bytes.clone()));
        let _ = MembersChange::decode(&bytes);
        let _ = decode_entry_body(1, 1, &bytes);
        let _ = crate::stable::Stable::decode(&crate::codec::seal(bytes.clone()));
        let _ = Snapshot::decode_file(&crate::codec::seal(bytes));
    }
}
