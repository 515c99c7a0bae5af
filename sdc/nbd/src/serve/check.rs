//! Which requests are carried out, and what the others are told. Pure.

use crate::limits::MAX_PAYLOAD;
use crate::wire::{Command, Headers, Request, command_flags, errno};

/// What a verdict depends on beside the request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context {
    pub(super) headers: Headers,
    pub(super) allocation: bool,
    pub(super) size_bytes: u64,
    pub(super) read_only: bool,
}

/// Bytes of payload that follow the request header, whatever becomes of the request. An extended WRITE should say that
/// its length counts payload; qemu (10.0) does not, and there is no other way to understand it.
pub(super) fn payload_bytes(request: &Request, headers: Headers) -> u64 {
    let counted = headers == Headers::Extended && request.flags & command_flags::PAYLOAD_LEN != 0;
    if request.kind == Command::Write as u16 || counted { request.length } else { 0 }
}

/// The command, or the error number to answer with.
pub(super) fn check(request: &Request, context: Context) -> Result<Command, u32> {
    let command = Command::from_wire(request.kind).ok_or(errno::INVAL)?;
    if request.flags & !allowed_flags(command, context.headers) != 0 {
        return Err(errno::INVAL);
    }
    if matches!(command, Command::Disconnect | Command::Flush) {
        return Ok(command);
    }
    let changes = matches!(command, Command::Write | Command::WriteZeroes | Command::Trim);
    if changes && context.read_only {
        return Err(errno::PERM);
    }
    if request.length == 0 || (command == Command::BlockStatus && !context.allocation) {
        return Err(errno::INVAL);
    }
    let end = request.offset.checked_add(request.length);
    if end.is_none_or(|end| end > context.size_bytes) {
        let grows = matches!(command, Command::Write | Command::WriteZeroes);
        return Err(if grows { errno::NOSPC } else { errno::INVAL });
    }
    if matches!(command, Command::Read | Command::Write) && request.length > u64::from(MAX_PAYLOAD) {
        return Err(if context.headers == Headers::Simple { errno::INVAL } else { errno::OVERFLOW });
    }
    Ok(command)
}

fn allowed_flags(command: Command, headers: Headers) -> u16 {
    // FUA is allowed on everything, by the protocol.
    command_flags::FUA
        | match command {
            Command::WriteZeroes => command_flags::NO_HOLE | command_flags::FAST_ZERO,
            Command::Read if headers >= Headers::Structured => command_flags::DF,
            Command::BlockStatus => command_flags::REQ_ONE,
            Command::Write if headers == Headers::Extended => command_flags::PAYLOAD_LEN,
            _ => 0,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 100 << 20;

    fn verdict(
        kind: u16,
        flags: u16,
        offset: u64,
        length: u64,
        change: impl FnOnce(&mut Context),
    ) -> Result<Command, u32> {
        let mut context =
            Context { headers: Headers::Structured, allocation: true, size_bytes: SIZE, read_only: false };
        change(&mut context);
        check(&Request { flags, kind, cookie: 0, offset, length }, context)
    }

    #[test]
    fn beyond_the_end_writes_lack_space_and_the_rest_is_invalid() {
        for (kind, error) in [(0, 22), (1, 28), (4, 22), (5, 22), (6, 28), (7, 22)] {
            assert_eq!(verdict(kind, 0, SIZE - 1, 2, |_| {}), Err(error), "command {kind}");
            assert_eq!(verdict(kind, 0, u64::MAX, 2, |_| {}), Err(error), "command {kind} beyond 64 bits");
            assert!(verdict(kind, 0, SIZE - 1, 1, |_| {}).is_ok());
        }
    }

    #[test]
    fn a_read_only_export_permits_no_change() {
        for kind in [1, 4, 6] {
            assert_eq!(verdict(kind, 0, 0, 1, |context| context.read_only = true), Err(errno::PERM));
        }
        for kind in [0, 3, 5, 7] {
            assert!(verdict(kind, 0, 0, 1, |context| context.read_only = true).is_ok());
        }
    }

    #[test]
    fn flags_are_taken_only_where_they_mean_something() {
        for kind in 0..8 {
            assert!(verdict(kind, command_flags::FUA, 0, 1, |_| {}).is_ok(), "FUA on command {kind}");
            assert_eq!(verdict(kind, 1 << 9, 0, 1, |_| {}), Err(errno::INVAL));
        }
        assert!(verdict(0, command_flags::DF, 0, 1, |_| {}).is_ok());
        assert_eq!(verdict(0, command_flags::DF, 0, 1, |c| c.headers = Headers::Simple), Err(errno::INVAL));
        assert_eq!(verdict(1, command_flags::NO_HOLE, 0, 1, |_| {}), Err(errno::INVAL));
        assert!(verdict(6, command_flags::NO_HOLE | command_flags::FAST_ZERO, 0, 1, |_| {}).is_ok());
    }

    #[test]
    fn lengths_are_bounded_where_there_is_payload() {
        let long = u64::from(MAX_PAYLOAD) + 1;
        assert_eq!(verdict(0, 0, 0, long, |_| {}), Err(errno::OVERFLOW));
        assert_eq!(verdict(0, 0, 0, long, |c| c.headers = Headers::Simple), Err(errno::INVAL));
        assert!(verdict(0, 0, 0, long - 1, |_| {}).is_ok());
        assert!(verdict(6, 0, 0, SIZE, |_| {}).is_ok());
        assert_eq!(verdict(0, 0, 0, 0, |_| {}), Err(errno::INVAL));
    }

    #[test]
    fn extended_writes_count_their_payload() {
        let extended = |context: &mut Context| context.headers = Headers::Extended;
        assert!(verdict(1, 0, 0, 1, extended).is_ok(), "qemu leaves the flag out");
        assert!(verdict(1, command_flags::PAYLOAD_LEN, 0, 1, extended).is_ok());
        let stray = Request { flags: command_flags::PAYLOAD_LEN, kind: 99, cookie: 0, offset: 0, length: 77 };
        assert_eq!(payload_bytes(&stray, Headers::Extended), 77, "unknown commands are read away too");
        assert_eq!(payload_bytes(&stray, Headers::Structured), 0);
    }

    #[test]
    fn block_status_needs_its_context() {
        assert_eq!(verdict(7, 0, 0, 1, |context| context.allocation = false), Err(errno::INVAL));
    }
}
