//! Hosts: the shell around each production core, in place of the daemons.

pub mod control;
pub mod links;
pub mod mdm;
pub mod operator;
pub mod sdc;
pub mod sds;
pub mod volume;

use crate::core::{Core, Input};

/// A host and what runs on it.
pub enum Host {
    /// A member of the metadata manager.
    Mdm(Box<mdm::MdmHost>),
    /// A data server.
    Sds(Box<sds::SdsHost>),
    /// A data client with its workload.
    Sdc(Box<sdc::SdcHost>),
    /// The people.
    Operator(Box<operator::Operator>),
}

impl Host {
    /// Something happened.
    pub fn input(&mut self, core: &mut Core, input: Input) {
        match self {
            Self::Mdm(host) => host.input(core, input),
            Self::Sds(host) => host.input(core, input),
            Self::Sdc(host) => host.input(core, input),
            Self::Operator(host) => host.input(core, input),
        }
    }

    /// What runs on it, in words.
    pub const fn what(&self) -> &'static str {
        match self {
            Self::Mdm(_) => "the member",
            Self::Sds(_) => "the data server",
            Self::Sdc(_) => "the data client",
            Self::Operator(_) => "the operator",
        }
    }

    /// Its process has ended; with the power, if so.
    pub fn ended(&mut self, core: &mut Core, power_lost: bool) {
        match self {
            Self::Mdm(host) => {
                host.ended();
                if power_lost { host.files.power_lost(&mut core.rng) } else { host.files.process_ended(&mut core.rng) }
            }
            Self::Sds(host) => host.ended(power_lost),
            Self::Sdc(host) => host.ended(),
            Self::Operator(_) => {}
        }
    }
}
