//! `--flag value` pairs of a classic command line.

use std::collections::BTreeMap;

use super::Failure;

/// The flags that were given.
#[derive(Debug, Default)]
pub struct Flags {
    values: BTreeMap<String, String>,
}

impl Flags {
    /// Takes `--name value` and `--name` apart. `switches` take no value; `allowed` is everything that the command knows.
    pub fn parse(command: &str, words: &[String], allowed: &[&str], switches: &[&str]) -> Result<Self, Failure> {
        let mut values = BTreeMap::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let Some(name) = word.strip_prefix("--") else {
                return Err(Failure::Usage(format!("'{word}' is not an option of --{command}")));
            };
            if name == command {
                continue;
            }
            let value = if switches.contains(&name) {
                String::new()
            } else if allowed.contains(&name) {
                let missing = || Failure::Usage(format!("--{name} needs a value"));
                words.next().filter(|value| !value.starts_with("--")).cloned().ok_or_else(missing)?
            } else {
                let known: Vec<String> = allowed.iter().chain(switches).map(|flag| format!("--{flag}")).collect();
                let known = if known.is_empty() { "no options".to_owned() } else { known.join(" ") };
                return Err(Failure::Usage(format!("--{command} has no option --{name}: it takes {known}")));
            };
            values.insert(name.to_owned(), value);
        }
        Ok(Self { values })
    }

    /// A flag's value.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// True if the flag was given.
    pub fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// The first of several spellings of one thing, such as `volume_id` and `volume_name`.
    pub fn any(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.get(name))
    }

    /// One of several spellings, which must be there.
    pub fn need(&self, names: &[&str]) -> Result<&str, Failure> {
        let list = || names.iter().map(|name| format!("--{name}")).collect::<Vec<_>>().join(" or ");
        self.any(names).ok_or_else(|| Failure::Usage(format!("give {}", list())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn flags_are_told_apart_from_switches_and_strangers() {
        let line = words("--map_volume_to_sdc --volume_name v --sdc_ip 10.0.0.1 --allow_multi_map");
        let parse = |line: &[String]| {
            Flags::parse("map_volume_to_sdc", line, &["volume_name", "volume_id", "sdc_ip"], &["allow_multi_map"])
        };
        let Ok(flags) = parse(&line) else { panic!("refused") };
        assert_eq!(flags.any(&["volume_id", "volume_name"]), Some("v"));
        assert!(flags.has("allow_multi_map"));
        assert!(matches!(parse(&words("--map_volume_to_sdc --speed 3")), Err(Failure::Usage(_))));
        assert!(matches!(parse(&words("--map_volume_to_sdc --volume_name --sdc_ip")), Err(Failure::Usage(_))));
        assert!(matches!(parse(&words("--map_volume_to_sdc stray")), Err(Failure::Usage(_))));
    }
}
