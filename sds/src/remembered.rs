//! The list of devices that were open when the server last ran: `data_directory/devices`, one line each, id and path.
//!
//! It only saves time at a start: a list that is lost or cannot be read is made again from the map.

use std::path::Path;

use sds_node::KnownDevice;

use crate::identity::write_private;

/// What was kept.
pub(crate) fn load(directory: &Path) -> Vec<KnownDevice> {
    match std::fs::read_to_string(directory.join("devices")) {
        Ok(text) => text.lines().filter_map(parse).collect(),
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!(%error, "the list of devices cannot be read; they are found in the map instead");
            }
            Vec::new()
        }
    }
}

/// Keeps it.
pub(crate) fn save(directory: &Path, devices: &[KnownDevice]) {
    let line = |known: &KnownDevice| format!("{} {}\n", known.device, known.path);
    let text: String = devices.iter().map(line).collect();
    if let Err(error) = write_private(&directory.join("devices"), text.as_bytes()) {
        tracing::warn!(error = %format!("{error:#}"), "the list of devices was not written; the map has it too");
    }
}

fn parse(line: &str) -> Option<KnownDevice> {
    let (device, path) = line.split_once(' ')?;
    Some(KnownDevice { device: device.parse().ok()?, path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mdm_api::ids::DeviceId;

    #[test]
    fn a_list_survives_its_file_and_a_damaged_line_is_passed_over() {
        let folder = std::env::temp_dir().join(format!("sds-remembered-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let known = |id, path: &str| KnownDevice { device: DeviceId(id), path: path.to_owned() };
        let list = vec![known(1, "/dev/sdb"), known(2, "/var/a file")];
        save(&folder, &list);
        assert_eq!(load(&folder), list);
        assert_eq!(parse("what is this"), None);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
