//! Ways in which the code can be broken on purpose, so that the tests can be tested: a simulator that does not notice one
//! of them would not notice a mistake of the same kind either (`tests/sim`, test `mutants`).
//!
//! Always true: without the feature `mutants`, which no daemon asks for, [`is_on`] is a constant `false` and the compiler
//! leaves nothing of it.

/// A way to be wrong. Each stands in the code at the one place that it breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutant {
    /// I8: a secondary acknowledges what is still on its way into the journal.
    AcknowledgeBeforeDurable,
    /// I14: a new primary does not wait for the leases that its server granted.
    SkipLeaseWait,
    /// I2: a restarted primary goes on in the term of the process before it.
    KeepTermOverRestart,
    /// I15: grants for a whole server cover groups that were promised away.
    DropExclusionList,
    /// I10: a secondary applies what is durable there, committed or not.
    ApplyBeforeCommit,
    /// I16: a new primary begins with an empty table of requests.
    ForgetRequestsAtFailOver,
    /// I5: a learner is proposed before it has everything.
    LearnerTooEarly,
    /// I13: a read is answered without a look at the lease.
    ReadWithoutLease,
    /// I19: a freed allocation unit is the next that is given out.
    ReuseFreedUnit,
    /// I22: a failed flush counts as one that succeeded.
    IgnoreFailedFlush,
    /// I23: a chunk is copied while writes to it are under way.
    CopyWithoutDrain,
    /// I16: a learner is fed without the table of requests.
    ForgetRequestsInResync,
    /// F18: where the newest home of a metadata page is bad the older one is taken.
    StaleMetadataHome,
    /// A member of the metadata manager whose log was wiped votes, and is heard under its old id.
    WipedVoter,
    /// I9: a member is not waited for from the moment that its removal is proposed.
    ShrinkBeforeCommit,
    /// I5: a learner is not waited for while its promotion is undecided.
    GrowWithoutRequiring,
    /// I11: a primary serves before the first entry of its term is committed.
    ServeBeforeEpochStart,
    /// I17: a fence is confirmed while writes of the fenced client are under way.
    FenceTooEarly,
    /// I7: a replica takes entries of a term older than it promised.
    ForgetPromise,
    /// I21: blocks are handed out without a look at their checksums.
    ServeUnverified,
    /// I8: a large write is linked before its data is durable.
    LinkBeforeStaged,
    /// I16: a late packet, below the watermark, is taken for a new request.
    TakeLateForNew,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 22] = [
        Self::AcknowledgeBeforeDurable,
        Self::SkipLeaseWait,
        Self::KeepTermOverRestart,
        Self::DropExclusionList,
        Self::ApplyBeforeCommit,
        Self::ForgetRequestsAtFailOver,
        Self::LearnerTooEarly,
        Self::ReadWithoutLease,
        Self::ReuseFreedUnit,
        Self::IgnoreFailedFlush,
        Self::CopyWithoutDrain,
        Self::ForgetRequestsInResync,
        Self::StaleMetadataHome,
        Self::WipedVoter,
        Self::ShrinkBeforeCommit,
        Self::GrowWithoutRequiring,
        Self::ServeBeforeEpochStart,
        Self::FenceTooEarly,
        Self::ForgetPromise,
        Self::ServeUnverified,
        Self::LinkBeforeStaged,
        Self::TakeLateForNew,
    ];
}

/// True if the code of this thread is broken in that way.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn is_on(_: Mutant) -> bool {
    false
}

#[cfg(feature = "mutants")]
thread_local! {
    static CHOSEN: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

/// True if the code of this thread is broken in that way.
#[cfg(feature = "mutants")]
pub fn is_on(mutant: Mutant) -> bool {
    CHOSEN.get() == Some(mutant)
}

/// Breaks the code of this thread, or mends it.
#[cfg(feature = "mutants")]
pub fn choose(mutant: Option<Mutant>) {
    CHOSEN.set(mutant);
}
