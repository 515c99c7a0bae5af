//! What decides: names, options, what a volume is by its labels, and the life of a volume on this host as a machine that
//! takes events and gives actions. No clock, no files, no sockets: time comes in, and what was seen comes in.

pub mod content;
pub mod facts;
pub mod labels;
pub mod machine;
pub mod mounts;
pub mod names;
pub mod options;
pub mod placement;
pub mod record;
pub mod seen;
pub mod show;
