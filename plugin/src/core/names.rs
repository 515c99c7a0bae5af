//! Docker's names of volumes and the system's.
//!
//! Docker allows longer names than the system does (its anonymous volumes have 64 digits). A name that the system takes is
//! used as it is; any other becomes `docker-` and a digest of it. The label `docker.name` keeps the full name, so that two
//! names with one digest would be noticed, not mixed up.

use mdm_api::limits::NAME_BYTES_MAX;

/// Longest name of a volume in Docker: it becomes the name of a directory and, with an ending, of a file.
pub const DOCKER_NAME_BYTES_MAX: usize = 200;
/// How names begin that are digests.
const DIGEST_PREFIX: &str = "docker-";

/// Why a name cannot be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// No name at all.
    #[error("the name of the volume is missing")]
    Missing,
    /// Too long.
    #[error("the name of the volume has {0} bytes: at most {DOCKER_NAME_BYTES_MAX} are possible")]
    TooLong(usize),
    /// Signs that Docker does not allow either.
    #[error("{0:?} cannot name a volume: use letters, digits and _ . - and begin with a letter or digit")]
    Signs(String),
}

/// Refuses what could not be a file name, or not Docker's.
pub fn check(name: &str) -> Result<(), BadName> {
    if name.is_empty() {
        return Err(BadName::Missing);
    }
    if name.len() > DOCKER_NAME_BYTES_MAX {
        return Err(BadName::TooLong(name.len()));
    }
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if plain && name.as_bytes()[0].is_ascii_alphanumeric() { Ok(()) } else { Err(BadName::Signs(name.to_owned())) }
}

/// What the volume is called in the system.
pub fn system_name(name: &str) -> String {
    let hex = |text: &str| text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let looks_like_id = hex(name) || name.strip_prefix("0x").is_some_and(hex);
    if name.len() <= NAME_BYTES_MAX && !looks_like_id && !name.starts_with(DIGEST_PREFIX) {
        return name.to_owned();
    }
    let digest = blake3::hash(name.as_bytes()).to_hex();
    format!("{DIGEST_PREFIX}{}", &digest[..NAME_BYTES_MAX - DIGEST_PREFIX.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_directory_are_refused() {
        for bad in ["", ".", "..", "../x", "a/b", "/a", "-a", "_a", "a b", "ä", "a\0b", "a\nb", &"x".repeat(300)] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        for good in ["db", "a.b_c-d", "0", &"f".repeat(64), &"x".repeat(200)] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn every_name_has_one_that_the_system_takes() {
        assert_eq!(system_name("db"), "db");
        for odd in [&"f".repeat(64), "5a2c67b900000000", &"x".repeat(32), "docker-db"] {
            let name = system_name(odd);
            assert!(name.len() <= NAME_BYTES_MAX && name.starts_with("docker-") && name != *odd, "{name}");
        }
        assert_ne!(system_name(&"x".repeat(32)), system_name(&"x".repeat(33)));
    }
}
