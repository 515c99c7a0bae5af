//! Counters of a session, for metrics and for people.

/// All count from the session's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Reads that completed well.
    pub reads: u64,
    /// Bytes they gave.
    pub bytes_read: u64,
    /// Writes that completed well.
    pub writes: u64,
    /// Bytes they wrote.
    pub bytes_written: u64,
    /// Zero requests that completed well.
    pub zeros: u64,
    /// Flushes that completed well.
    pub flushes: u64,
    /// Status requests that completed well.
    pub statuses: u64,
    /// I/Os that failed.
    pub errors: u64,
    /// I/Os that were refused because the session was full.
    pub refused_busy: u64,
    /// I/Os that were given up by the policy's time-out.
    pub timed_out: u64,
    /// I/Os that their user stopped waiting for.
    pub cancelled: u64,
    /// Writes that had to wait for an earlier overlapping one.
    pub waited_for_order: u64,
    /// Requests to servers, retries included.
    pub requests: u64,
    /// Requests that were sent again.
    pub retries: u64,
    /// Answers "not the primary".
    pub wrong_primary: u64,
    /// Answers that came too late: their request had been sent again, or was not waited for any more.
    pub late_answers: u64,
    /// Read answers that did not match their checksums, and writes that arrived damaged.
    pub damaged: u64,
    /// Answers "no space".
    pub no_space: u64,
    /// Connections that were lost with the volume open on them.
    pub connections_lost: u64,
    /// Switches to a newer snapshot sequence.
    pub snapshot_switches: u64,
}
