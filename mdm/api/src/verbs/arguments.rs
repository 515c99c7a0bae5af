//! Arguments of verbs: their kinds, and the values given, checked.

use std::collections::BTreeMap;

use super::Verb;
use crate::command::ObjectRef;
use crate::error::{CommandError, ErrorCode};
use crate::ids::Guid;

/// An argument.
pub struct Argument {
    /// Its name, as in `--size`.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// True if it must be given.
    pub required: bool,
    /// True if it is given by position, not by name.
    pub positional: bool,
    /// True if it may be given several times.
    pub repeated: bool,
    /// One line of help.
    pub help: &'static str,
}

/// What an argument takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A new name.
    Name,
    /// An object, by id or name.
    Object,
    /// A size: `512MiB`, `10GiB`, `1TiB`; a bare number is GiB.
    Size,
    /// A whole number.
    Number {
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// `host:port`.
    Address,
    /// A path on the server.
    Path,
    /// A host's GUID.
    Guid,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Given or not.
    Flag,
}

impl Kind {
    /// A good value, for tests and examples.
    pub const fn sample(self) -> &'static str {
        match self {
            Self::Name | Self::Object => "thing",
            Self::Size => "8GiB",
            Self::Number { .. } => "2",
            Self::Address => "10.0.0.1:7072",
            Self::Path => "/dev/sdb",
            Self::Guid => "271BAD82-08EE-44F2-A2B1-7E2787C27BE1",
            Self::Choice(words) => words[0],
            Self::Flag => "true",
        }
    }

    fn check(self, name: &str, value: &str) -> Result<(), CommandError> {
        let bad = |what: &str| Err(invalid(format!("--{name} {value}"), what.to_owned()));
        match self {
            Self::Size => parse_size(value).map(drop),
            Self::Number { min, max } => match value.parse::<u64>() {
                Ok(number) if (min..=max).contains(&number) => Ok(()),
                _ => bad(&format!("give a whole number from {min} to {max}")),
            },
            Self::Guid if value.parse::<Guid>().is_err() => {
                bad("give a GUID such as 271BAD82-08EE-44F2-A2B1-7E2787C27BE1")
            }
            Self::Choice(words) if !words.contains(&value) => bad(&format!("choose one of {}", words.join(", "))),
            Self::Address => match value.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(()),
                _ => bad("give an address as host:port"),
            },
            Self::Path if !value.starts_with('/') => bad("give an absolute path"),
            Self::Name | Self::Object | Self::Path if value.is_empty() => bad("it is empty: give a name"),
            _ => Ok(()),
        }
    }
}

/// Bytes of a size in words. A bare number is GiB, as in ScaleIO. The size is not rounded.
pub fn parse_size(text: &str) -> Result<u64, CommandError> {
    let bad = || invalid(format!("'{text}' is not a size"), "write it like 512MiB, 10GiB or 2TiB".to_owned());
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| bad())?;
    let unit: u64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "" | "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "p" | "pib" => 1 << 50,
        _ => return Err(bad()),
    };
    number.checked_mul(unit).ok_or_else(bad)
}

fn invalid(message: String, remedy: String) -> CommandError {
    CommandError::new(ErrorCode::InvalidArgument, message, remedy)
}

/// The values given for a verb's arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Values {
    values: BTreeMap<&'static str, Vec<String>>,
}

impl Values {
    /// Gives a value.
    pub fn set(&mut self, name: &'static str, value: String) {
        self.values.entry(name).or_default().push(value);
    }

    /// Checks every value against its argument, and that what is required is there.
    pub fn check(&self, verb: &Verb) -> Result<(), CommandError> {
        for argument in verb.arguments {
            let given = self.values.get(argument.name).map_or(&[][..], Vec::as_slice);
            if argument.required && given.is_empty() {
                return Err(invalid(format!("--{} is missing", argument.name), argument.help.to_owned()));
            }
            if given.len() > 1 && !argument.repeated {
                return Err(invalid(format!("--{} is given twice", argument.name), "give it once".to_owned()));
            }
            for value in given {
                argument.kind.check(argument.name, value)?;
            }
        }
        Ok(())
    }

    fn first(&self, name: &str) -> Option<&str> {
        self.values.get(name).and_then(|values| values.first()).map(String::as_str)
    }

    /// A text that was required.
    pub fn text(&self, name: &str) -> String {
        self.first(name).unwrap_or_default().to_owned()
    }

    /// A text, if given.
    pub fn text_opt(&self, name: &str) -> Option<String> {
        self.first(name).map(str::to_owned)
    }

    /// All texts.
    pub fn texts(&self, name: &str) -> Vec<String> {
        self.values.get(name).cloned().unwrap_or_default()
    }

    /// An object that was required.
    pub fn object(&self, name: &str) -> ObjectRef {
        ObjectRef(self.text(name))
    }

    /// An object, if given.
    pub fn object_opt(&self, name: &str) -> Option<ObjectRef> {
        self.first(name).map(ObjectRef::from)
    }

    /// A number, 0 if not given.
    pub fn number(&self, name: &str) -> Result<u64, CommandError> {
        match self.first(name) {
            None => Ok(0),
            Some(text) => {
                text.parse().map_err(|_| invalid(format!("--{name} {text}"), "give a whole number".to_owned()))
            }
        }
    }

    /// A size in bytes.
    pub fn size(&self, name: &str) -> Result<u64, CommandError> {
        parse_size(&self.text(name))
    }

    /// A flag.
    pub fn flag(&self, name: &str) -> bool {
        self.first(name).is_some_and(|value| value != "false")
    }

    /// A GUID.
    pub fn guid(&self, name: &str) -> Result<Guid, CommandError> {
        self.text(name).parse().map_err(|error| invalid(format!("{error}"), "give the host's GUID".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_units_and_a_bare_number_is_gib() {
        assert_eq!(parse_size("16"), Ok(16 << 30));
        assert_eq!(parse_size("512MiB"), Ok(512 << 20));
        assert_eq!(parse_size("2 tib"), Ok(2 << 40));
        for bad in ["", "GiB", "-1", "1.5GiB", "10XB", "99999999999PiB"] {
            assert_eq!(parse_size(bad).unwrap_err().code, ErrorCode::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn a_bad_value_names_the_argument_and_what_it_takes() {
        let mut values = Values::default();
        values.set("volume", "v".to_owned());
        values.set("sdc", "s".to_owned());
        values.set("access", "write".to_owned());
        let error = values.check(super::super::find("volume", "map").unwrap()).unwrap_err();
        assert!(error.to_string().contains("--access write"), "{error}");
    }
}
