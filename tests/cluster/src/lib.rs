//! Tests of a whole system of real processes: what they need, and the runs themselves.
//!
//! A run is written once here and used twice: short by the tests in `tests/`, in full by the program `evidence`, which
//! writes what it measured into `docs/evidence/`.
//!
//! | module | owns |
//! |---|---|
//! | [`turn`] | one system at a time on this machine |
//! | [`programs`] | the programs under test, built once |
//! | [`shell`] | running commands, with their words in the error |
//! | [`system`] | a system under `dev`: started, asked, killed, taken down |
//! | [`nbd`] | a small NBD client of our own |
//! | [`fio`] | `fio` and its reports |
//! | [`tree`] | a tree of real files and its copies |
//! | [`records`] | records that `fsync` acknowledged |
//! | [`blocks`] | blocks of a volume that a writer knows to be durable |
//! | [`registers`] | blocks that several clients share, checked as the simulator does |
//! | [`worker`] | a thread that works until it is told to stop |
//! | [`gaps`] | the longest time without a completion |
//! | [`copies`] | reading every copy of every block |
//! | [`hostile`] | listening ports, and bytes that nobody should send |
//! | [`hosts`], [`document`] | three hosts in namespaces, and the installation guide that is carried out on them |
//! | [`runs`] | the runs |
//!
//! Always true: only processes of the run's own system are signalled; whatever a run made is gone when it ends, however
//! it ends; a run that fails shows the last words of every daemon.

pub mod blocks;
pub mod copies;
pub mod document;
pub mod fio;
pub mod gaps;
pub mod hostile;
pub mod hosts;
pub mod nbd;
pub mod programs;
pub mod records;
pub mod registers;
pub mod runs;
pub mod shell;
pub mod system;
pub mod tree;
pub mod turn;
pub mod worker;
