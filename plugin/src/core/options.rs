//! What `docker volume create -o` takes: one table, from which come the checks and the list that a wrong one is answered
//! with.
//!
//! Always true: a value that passed is in its canonical form, so that two creations can be compared as texts; nothing that
//! passed can name a file or another device to the programs that it is handed to.

use std::collections::BTreeMap;

use mdm_api::verbs::parse_size;

/// An option.
struct Known {
    name: &'static str,
    kind: Kind,
    /// What a volume without it has; none where that depends on the configuration.
    default: Option<&'static str>,
    /// Kept as a label of the volume.
    is_kept: bool,
    help: &'static str,
}

#[derive(Clone, Copy)]
enum Kind {
    Size,
    Name,
    Copies,
    FileSystem,
    MakeArguments,
    MountOptions,
    Number,
    Rate,
    Id,
    Mode,
    Flag,
}

const fn known(name: &'static str, kind: Kind, default: Option<&'static str>, help: &'static str) -> Known {
    let is_kept = !matches!(kind, Kind::Size | Kind::Name | Kind::Copies);
    Known { name, kind, default, is_kept, help }
}

const KNOWN: &[Known] = &[
    known("size", Kind::Size, None, "such as 20GiB; a bare number is GiB"),
    known("pool", Kind::Name, None, "name or id of a storage pool"),
    known("protection-domain", Kind::Name, None, "name or id of a protection domain"),
    known("copies", Kind::Copies, None, "2 or 3: picks a pool that keeps so many"),
    known("fstype", Kind::FileSystem, None, "ext4 or xfs"),
    known("mkfs-opts", Kind::MakeArguments, Some(""), "further arguments of mkfs, such as '-m 0'"),
    known("mount-opts", Kind::MountOptions, Some(""), "such as noatime,nodiratime"),
    known("iops", Kind::Number, Some("0"), "requests per second at most; 0: no limit"),
    known("bandwidth", Kind::Rate, Some("0"), "bytes per second at most, such as 100MiB; 0: no limit"),
    known("uid", Kind::Id, Some("0"), "owner of the root directory"),
    known("gid", Kind::Id, Some("0"), "group of the root directory"),
    known("mode", Kind::Mode, Some("0755"), "permissions of the root directory, octal"),
    known("read-only", Kind::Flag, Some("false"), "true or false"),
    known("shared", Kind::Flag, Some("false"), "true: several hosts at once, for cluster file systems"),
];

/// Options of other systems, and of this one once it can do them.
const REFUSED: &[(&str, &str)] = &[
    ("thin", "every volume of this system takes its space as it is written; leave the option out"),
    ("thick", "this system does not reserve space; leave the option out"),
    ("from-volume", "this system has no clones yet"),
    ("from-snapshot", "this system has no snapshots yet"),
];

/// Why options were refused, for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadOption(pub String);

/// Options that were given and are right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    values: BTreeMap<&'static str, String>,
}

/// Checks what was given.
pub fn parse(options: &BTreeMap<String, String>) -> Result<Given, BadOption> {
    let mut values = BTreeMap::new();
    for (name, value) in options {
        if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| refused == name) {
            return Err(BadOption(format!("option '{name}' is not supported: {why}")));
        }
        let Some(option) = KNOWN.iter().find(|option| option.name == name) else {
            return Err(BadOption(format!("there is no option '{}'; there are: {}", clip(name), list())));
        };
        let canonical = option.kind.canonical(value.trim());
        let canonical =
            canonical.ok_or_else(|| BadOption(format!("option {name}={}: give {}", clip(value), option.help)))?;
        values.insert(option.name, canonical);
    }
    Ok(Given { values })
}

fn list() -> String {
    let lines: Vec<String> = KNOWN.iter().map(|option| format!("{} ({})", option.name, option.help)).collect();
    lines.join(", ")
}

/// What a stranger sent, short enough for a message.
fn clip(text: &str) -> String {
    let short: String = text.chars().take(64).collect();
    short.escape_debug().to_string()
}

impl Kind {
    fn canonical(self, value: &str) -> Option<String> {
        let number = |max: u64| value.parse::<u64>().ok().filter(|number| *number <= max).map(|n| n.to_string());
        match self {
            Self::Size => parse_size(value).ok().filter(|bytes| *bytes > 0).map(|bytes| bytes.to_string()),
            Self::Rate if value == "0" => Some(value.to_owned()),
            Self::Rate => parse_size(value).ok().map(|bytes| bytes.to_string()),
            Self::Name => (!value.is_empty() && value.len() <= 64).then(|| value.to_owned()),
            Self::Copies => matches!(value, "2" | "3").then(|| value.to_owned()),
            Self::FileSystem => matches!(value, "ext4" | "xfs").then(|| value.to_owned()),
            Self::MakeArguments => make_arguments(value),
            Self::MountOptions => mount_options(value),
            Self::Number => number(u64::MAX),
            Self::Id => number(u64::from(u32::MAX - 1)),
            Self::Mode => {
                let bits = u32::from_str_radix(value, 8).ok().filter(|bits| *bits <= 0o7777);
                bits.map(|bits| format!("{bits:04o}"))
            }
            Self::Flag => match value {
                "true" | "1" | "yes" | "" => Some("true".to_owned()),
                "false" | "0" | "no" => Some("false".to_owned()),
                _ => None,
            },
        }
    }
}

/// Flags of `mkfs`, each with at most one argument of its own; nothing that `mkfs` could take for a device or a file.
fn make_arguments(value: &str) -> Option<String> {
    let plain = |word: &str| word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_=,.^:".contains(&byte));
    let mut may_follow = false;
    let words: Vec<&str> = value.split_whitespace().collect();
    for word in &words {
        let is_flag = word.starts_with('-');
        if !plain(word) || (!is_flag && !may_follow) {
            return None;
        }
        may_follow = is_flag;
    }
    let text = words.join(" ");
    (text.len() <= 200).then_some(text)
}

fn mount_options(value: &str) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"=_.-".contains(&byte);
    let good = |word: &str| !word.is_empty() && word.bytes().all(plain);
    (value.len() <= 200 && (value.is_empty() || value.split(',').all(good))).then(|| value.to_owned())
}

impl Given {
    /// A value in its canonical form.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// The size in bytes.
    pub fn size_bytes(&self) -> Option<u64> {
        self.get("size").and_then(|text| text.parse().ok())
    }

    /// The number of copies.
    pub fn copies(&self) -> Option<u8> {
        self.get("copies").and_then(|text| text.parse().ok())
    }

    /// Those that are kept with the volume.
    pub fn kept(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let kept =
            self.values.iter().filter(|(name, _)| KNOWN.iter().any(|known| known.name == **name && known.is_kept));
        kept.map(|(name, value)| (*name, value.as_str()))
    }
}

/// What a volume has that was made without this option.
pub fn default_of(name: &str) -> Option<&'static str> {
    KNOWN.iter().find(|known| known.name == name).and_then(|known| known.default)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(options: &[(&str, &str)]) -> Result<Given, BadOption> {
        parse(&options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn right_options_have_one_form() {
        let options = given(&[("size", "20GiB"), ("mode", "750"), ("read-only", "yes"), ("mkfs-opts", " -m  0 ")]);
        let options = options.expect("right");
        assert_eq!(options.size_bytes(), Some(20 << 30));
        assert_eq!(options.get("mode"), Some("0750"));
        assert_eq!(options.get("read-only"), Some("true"));
        assert_eq!(options.get("mkfs-opts"), Some("-m 0"));
        assert_eq!(options.kept().count(), 3, "the size is not kept");
    }

    #[test]
    fn an_unknown_option_is_answered_with_the_right_ones() {
        let error = given(&[("sise", "1")]).unwrap_err().to_string();
        assert!(error.contains("'sise'") && error.contains("size (") && error.contains("mount-opts ("), "{error}");
    }

    #[test]
    fn what_the_system_cannot_do_is_refused_by_name() {
        for name in ["thin", "thick", "from-volume", "from-snapshot"] {
            let error = given(&[(name, "x")]).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("not supported"), "{error}");
        }
    }

    #[test]
    fn nothing_smuggles_a_device_or_a_second_option_in() {
        for (name, value) in [
            ("mkfs-opts", "/dev/sda"),
            ("mkfs-opts", "-q sda sdb"),
            ("mkfs-opts", "-d /etc"),
            ("mkfs-opts", "-m 0; reboot"),
            ("mount-opts", "ro,bind /etc"),
            ("mount-opts", "loop=/dev/sda"),
            ("size", "0"),
            ("size", "much"),
            ("mode", "99"),
            ("mode", "17777"),
            ("uid", "-1"),
            ("uid", "4294967295"),
            ("copies", "1"),
            ("fstype", "ext3"),
            ("read-only", "maybe"),
        ] {
            let error = given(&[(name, value)]).expect_err(value).to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
