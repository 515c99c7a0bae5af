//! The data client's daemon as a library: wiring of `sdc-client` (volume I/O), `sdc-nbd` (server and devices) and the
//! metadata manager's client.
//!
//! | module | owns |
//! |---|---|
//! | [`config`] | the configuration file |
//! | [`identity`] | the host's GUID and its certificate |
//! | [`link`] | the map as it is followed, and the right to open volumes |
//! | [`export`] | a volume as the NBD server sees it, with the mapping's limits |
//! | [`keeper`] | one mapped volume's life: open, attach, resize, take away |
//! | [`manager`] | which volumes there are; what tools ask |
//! | [`local`] | the control socket |
//! | [`metrics`] | figures for Prometheus |
//! | [`daemon`] | start and end |

pub mod config;
pub mod daemon;
pub mod export;
pub mod identity;
pub mod keeper;
pub mod limiter;
pub mod link;
pub mod local;
pub mod manager;
pub mod metrics;
