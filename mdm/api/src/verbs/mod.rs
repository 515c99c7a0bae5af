//! The verbs: everything that people can ask, one entry of one table each.
//!
//! From this table come the command line, its help, completion and man pages, and the REST interface. An entry names its
//! arguments, the role it needs and the refusals that it may meet, and makes the command from the values. Nothing else in the
//! product lists verbs.

mod arguments;
mod table;

pub use arguments::{Argument, Kind, Values, parse_size};
pub use table::VERBS;

use crate::command::{AdminCommand, ObjectRef};
use crate::error::{CommandError, ErrorCode};
use crate::model::UserRole;

/// One thing that can be asked.
pub struct Verb {
    /// The kind of object, such as `volume`.
    pub noun: &'static str,
    /// What is done, such as `add`.
    pub verb: &'static str,
    /// Other spellings of the verb.
    pub aliases: &'static [&'static str],
    /// One line of help.
    pub about: &'static str,
    /// What it takes.
    pub arguments: &'static [Argument],
    /// The role it needs.
    pub role: UserRole,
    /// The refusals that are its own; every verb may also meet `Unavailable`, `PermissionDenied` and `InvalidSession`.
    pub errors: &'static [ErrorCode],
    /// Makes the request.
    pub make: fn(&Values) -> Result<Call, CommandError>,
}

/// What a verb comes down to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// A change.
    Change(AdminCommand),
    /// A change of an account, whose password the caller still has to ask for and hash.
    Account(AccountChange),
    /// All objects of the verb's noun.
    List,
    /// One object of the verb's noun.
    Show(ObjectRef),
    /// A new join token.
    JoinToken,
}

/// Changes that need a password.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AccountChange {
    Add { name: String, role: UserRole },
    SetPassword { user: ObjectRef },
}

/// The verb of a noun, by its name or an alias.
pub fn find(noun: &str, verb: &str) -> Option<&'static Verb> {
    VERBS.iter().find(|v| v.noun == noun && (v.verb == verb || v.aliases.contains(&verb)))
}

/// The nouns, in the order of the table, each with what it is.
pub fn nouns() -> Vec<(&'static str, &'static str)> {
    let mut nouns: Vec<(&str, &str)> = Vec::new();
    for verb in VERBS {
        if !nouns.iter().any(|(noun, _)| *noun == verb.noun) {
            nouns.push((verb.noun, about_noun(verb.noun)));
        }
    }
    nouns
}

fn about_noun(noun: &str) -> &'static str {
    match noun {
        "system" => "The system as a whole",
        "mdm" => "Members of the metadata manager",
        "protection-domain" => "Sets of servers that mirror among themselves",
        "fault-set" => "Servers that fail together",
        "storage-pool" => "Devices under one policy",
        "sds" => "Data servers",
        "device" => "Devices that data servers pool",
        "sdc" => "Data clients",
        "volume" => "Volumes and who may use them",
        "user" => "Accounts",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_noun_is_explained() {
        for (index, verb) in VERBS.iter().enumerate() {
            let names = |v: &Verb| std::iter::once(v.verb).chain(v.aliases.iter().copied()).collect::<Vec<_>>();
            for other in &VERBS[index + 1..] {
                let clash = verb.noun == other.noun && names(verb).iter().any(|name| names(other).contains(name));
                assert!(!clash, "{} {} and {}", verb.noun, verb.verb, other.verb);
            }
            assert!(!about_noun(verb.noun).is_empty(), "{}", verb.noun);
            assert!(!verb.about.is_empty());
        }
    }

    #[test]
    fn every_verb_makes_its_call_from_samples_of_its_arguments() {
        for verb in VERBS {
            let mut values = Values::default();
            for argument in verb.arguments {
                values.set(argument.name, argument.kind.sample().to_owned());
            }
            values.check(verb).unwrap();
            if let Err(error) = (verb.make)(&values) {
                panic!("{} {}: {error}", verb.noun, verb.verb);
            }
        }
    }
}
