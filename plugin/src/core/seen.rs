//! The system as it was seen last, kept up with what has changed since: of ten thousand volumes only those are told again
//! that are not as they were.
//!
//! Always true: the volumes are those of one revision, whole, whichever order answers come in.

use std::collections::BTreeSet;
use std::sync::Arc;

use mdm_api::command::SystemView;
use mdm_api::epoch::Revision;
use mdm_api::ids::VolumeId;
use mdm_api::model::Volume;

/// What was seen.
#[derive(Default)]
pub struct Seen(Option<Arc<SystemView>>);

impl Seen {
    /// Up to where the volumes are known; 0: not at all.
    pub fn revision(&self) -> Revision {
        self.0.as_ref().map_or(Revision(0), |view| view.revision)
    }

    /// What was seen last.
    pub fn last(&self) -> Option<Arc<SystemView>> {
        self.0.clone()
    }

    /// Takes in an answer, in which volumes are those that changed after `from` (0: all of them) and `removed` went.
    /// `None` if it cannot be put together with what was seen, so that all has to be asked for.
    pub fn merge(&mut self, mut answer: SystemView, from: Revision, removed: &[VolumeId]) -> Option<Arc<SystemView>> {
        if from > Revision(0) {
            let fits = |before: &&Arc<SystemView>| before.system.id == answer.system.id && before.revision >= from;
            self.0.as_ref().filter(fits)?;
            let before = self.0.take()?;
            let known = before.revision;
            let volumes = Arc::try_unwrap(before).map_or_else(|shared| shared.volumes.clone(), |own| own.volumes);
            // An answer that was overtaken by a later one says nothing new of volumes.
            answer.volumes = if known < answer.revision { put(volumes, answer.volumes, removed) } else { volumes };
            answer.revision = answer.revision.max(known);
        }
        let view = Arc::new(answer);
        self.0 = Some(view.clone());
        Some(view)
    }
}

/// Volumes, in the order of their ids, with changed ones in the place of what they were and without removed ones.
fn put(mut volumes: Vec<Volume>, changed: Vec<Volume>, removed: &[VolumeId]) -> Vec<Volume> {
    if changed.is_empty() && removed.is_empty() {
        return volumes;
    }
    let old: BTreeSet<VolumeId> = changed.iter().map(|volume| volume.id).chain(removed.iter().copied()).collect();
    volumes.retain(|volume| !old.contains(&volume.id));
    volumes.extend(changed);
    volumes.sort_by_key(|volume| volume.id);
    volumes
}

#[cfg(test)]
mod tests {
    use mdm_api::epoch::SnapSeq;
    use mdm_api::ids::{StoragePoolId, VtreeId};

    use super::*;

    fn volume(id: u64, name: &str) -> Volume {
        Volume {
            id: VolumeId(id),
            name: name.to_owned(),
            pool: StoragePoolId(1),
            vtree: VtreeId(id),
            size_bytes: 1 << 20,
            snap_seq: SnapSeq(0),
            created_s: 0,
            removing: false,
            labels: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn changes_are_put_in_their_places() {
        let before = vec![volume(1, "a"), volume(2, "b"), volume(4, "d")];
        let after = put(before, vec![volume(3, "c"), volume(4, "new")], &[VolumeId(1), VolumeId(9)]);
        let names: Vec<&str> = after.iter().map(|volume| volume.name.as_str()).collect();
        assert_eq!(names, ["b", "c", "new"]);
    }
}
