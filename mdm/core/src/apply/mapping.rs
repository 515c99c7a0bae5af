//! Mappings and their generations.
//!
//! A generation is the revision in which it was made: none is ever used twice, not even after the mapping was taken away and
//! made anew. What it takes to be sure that an older one writes no more (I17) is the fence: the leader's fence reconciler
//! says when it holds, and only then is a mapping usable, or gone (P8).

use mdm_api::command::{CommandAnswer, CommandResult, ObjectRef};
use mdm_api::epoch::Revision;
use mdm_api::error::{CommandError, ErrorCode};
use mdm_api::ids::{SdcId, VolumeId};
use mdm_api::map::MapKey;
use mdm_api::model::{AccessMode, Limits, Mapping};

use super::{done, refuse};
use crate::command::FenceDone;
use crate::limits::MAPPINGS_PER_VOLUME_MAX;
use crate::state::State;

impl State {
    pub(super) fn map_volume(
        &mut self,
        volume: &ObjectRef,
        sdc: &ObjectRef,
        access: AccessMode,
        limits: Limits,
        allow_multiple: bool,
    ) -> CommandResult {
        let volume = self.find_open_volume(volume)?.id;
        let sdc = self.find_sdc(sdc)?.id;
        let existing = self.mappings.get(&(volume, sdc));
        if existing.is_some_and(|mapping| mapping.revoked) {
            return refuse(
                ErrorCode::Busy,
                format!("Volume {volume} is still being unmapped from SDC {sdc}"),
                "try again shortly",
            );
        }
        if existing.is_some() {
            return refuse(
                ErrorCode::AlreadyMapped,
                "The volume is already mapped to this SDC",
                "unmap it first to map it otherwise",
            );
        }
        let others = self.mappings.values().filter(|mapping| mapping.volume == volume).count();
        if others > 0 && !allow_multiple {
            return refuse(
                ErrorCode::MappedElsewhere,
                "Only a single SDC may be mapped to this volume at a time",
                "unmap it from the other one first, or allow multiple mappings (--allow-multi-map)",
            );
        }
        if others >= MAPPINGS_PER_VOLUME_MAX {
            return refuse(
                ErrorCode::TooMany,
                "There are too many mappings",
                "unmap the volume from another SDC first",
            );
        }
        let (revision, generation) = (self.next_revision(), self.next_generation());
        let mapping = Mapping {
            volume,
            sdc,
            access,
            limits,
            mapped: generation,
            generation,
            opened_by: 0,
            fence_revision: revision,
            // Nobody has opened it, and nothing older is left: an earlier mapping went only when its fence held.
            fenced: true,
            revoked: false,
        };
        let answer = answer(&mapping);
        self.mappings.insert((volume, sdc), mapping);
        self.touch(MapKey::Mapping(volume, sdc));
        Ok(answer)
    }

    /// Revokes one mapping of the volume, or all.
    pub(super) fn unmap_volume(&mut self, volume: &ObjectRef, sdc: Option<&ObjectRef>) -> CommandResult {
        let volume = self.find_volume(volume)?.id;
        let only = sdc.map(|sdc| self.find_sdc(sdc).map(|sdc| sdc.id)).transpose()?;
        let sdcs: Vec<SdcId> = self
            .mappings
            .values()
            .filter(|mapping| mapping.volume == volume && only.is_none_or(|only| only == mapping.sdc))
            .map(|mapping| mapping.sdc)
            .collect();
        if sdcs.is_empty() {
            return refuse(ErrorCode::NotMapped, "The volume is not mapped to SDC", "nothing has to be done");
        }
        let mut fence_revision = Revision(0);
        for sdc in &sdcs {
            fence_revision = fence_revision.max(self.revoke(volume, *sdc));
        }
        Ok(CommandAnswer::Unmapping { volume, sdcs, fence_revision })
    }

    /// Revokes a mapping; which fence to wait for.
    fn revoke(&mut self, volume: VolumeId, sdc: SdcId) -> Revision {
        let (revision, generation) = (self.next_revision(), self.next_generation());
        let Some(mapping) = self.mappings.get_mut(&(volume, sdc)) else { return revision };
        if mapping.revoked {
            return mapping.fence_revision;
        }
        if mapping.opened_by == 0 {
            // Never opened: no ticket was ever given for it, so there is nobody to fence.
            self.mappings.remove(&(volume, sdc));
            self.bury(MapKey::Mapping(volume, sdc));
            return revision;
        }
        mapping.revoked = true;
        mapping.fenced = false;
        mapping.generation = generation;
        mapping.fence_revision = revision;
        self.touch(MapKey::Mapping(volume, sdc));
        revision
    }

    pub(super) fn set_mapping_limits(&mut self, volume: &ObjectRef, sdc: &ObjectRef, limits: Limits) -> CommandResult {
        let volume = self.find_open_volume(volume)?.id;
        let sdc = self.find_sdc(sdc)?.id;
        let Some(mapping) = self.mappings.get_mut(&(volume, sdc)).filter(|mapping| !mapping.revoked) else {
            return not_mapped(volume, sdc);
        };
        mapping.limits = limits;
        let answer = answer(mapping);
        self.touch(MapKey::Mapping(volume, sdc));
        Ok(answer)
    }

    /// A client daemon opens a mapping: a new generation, to be used once all older ones are fenced. The same daemon
    /// asking again gets what it got.
    pub(super) fn open_mapping(&mut self, volume: VolumeId, sdc: SdcId, opener: u64) -> CommandResult {
        if opener == 0 {
            return refuse(ErrorCode::InvalidArgument, "The opener is 0", "draw it at random at each start");
        }
        let (revision, generation) = (self.next_revision(), self.next_generation());
        if self.volumes.get(&volume).is_none_or(|volume| volume.removing) {
            return refuse(ErrorCode::VolumeNotFound, format!("Could not find the volume {volume}"), "");
        }
        let Some(mapping) = self.mappings.get_mut(&(volume, sdc)).filter(|mapping| !mapping.revoked) else {
            return not_mapped(volume, sdc);
        };
        if mapping.opened_by != opener {
            // The first opening has nothing older to fence.
            mapping.fenced = mapping.opened_by == 0;
            mapping.opened_by = opener;
            mapping.generation = generation;
            mapping.fence_revision = revision;
            self.touch(MapKey::Mapping(volume, sdc));
        }
        let mapping = &self.mappings[&(volume, sdc)];
        Ok(CommandAnswer::Opened { generation: mapping.generation, fence_revision: mapping.fence_revision })
    }

    pub(super) fn fences_done(&mut self, fences: &[FenceDone]) -> CommandResult {
        for fence in fences {
            let key = (fence.volume, fence.sdc);
            let Some(mapping) = self.mappings.get_mut(&key) else { continue };
            if mapping.fence_revision != fence.fence_revision || mapping.fenced {
                continue;
            }
            if mapping.revoked {
                self.mappings.remove(&key);
                self.bury(MapKey::Mapping(fence.volume, fence.sdc));
            } else {
                mapping.fenced = true;
                self.touch(MapKey::Mapping(fence.volume, fence.sdc));
            }
        }
        done()
    }
}

fn answer(mapping: &Mapping) -> CommandAnswer {
    CommandAnswer::Mapping {
        volume: mapping.volume,
        sdc: mapping.sdc,
        generation: mapping.generation,
        fence_revision: mapping.fence_revision,
    }
}

fn not_mapped<T>(volume: VolumeId, sdc: SdcId) -> Result<T, CommandError> {
    refuse(
        ErrorCode::NotMapped,
        format!("The volume is not mapped to SDC: volume {volume}, SDC {sdc}"),
        "map it first with `scli volume map`",
    )
}
