//! What names and texts may look like.

use mdm_api::error::{CommandError, ErrorCode};
use mdm_api::limits::NAME_BYTES_MAX;

use super::refuse;
use crate::limits::{ADDRESSES_MAX, TEXT_BYTES_MAX};

/// Letters, digits and a few signs; not something that would be taken for an id.
pub(super) fn check_name(name: &str) -> Result<(), CommandError> {
    if name.is_empty() {
        return refuse(ErrorCode::NameInvalid, "The name is empty", "give one of 1 to 31 characters");
    }
    if name.len() > NAME_BYTES_MAX {
        return refuse(
            ErrorCode::NameTooLong,
            format!("The given name exceeds the allowed length of {NAME_BYTES_MAX} characters."),
            format!("'{name}' has {}: shorten it", name.len()),
        );
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"=+/._-".contains(&byte);
    if let Some(wrong) = name.chars().find(|c| !c.is_ascii() || !allowed(*c as u8)) {
        return refuse(
            ErrorCode::NameInvalid,
            format!("The name '{name}' has the character {wrong:?}, which names may not have"),
            "use letters, digits and = + / . _ -",
        );
    }
    let digits = name.strip_prefix("0x").unwrap_or(name);
    if digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return refuse(
            ErrorCode::NameInvalid,
            format!("The name '{name}' looks like an id"),
            "use a name that is not 16 hex digits",
        );
    }
    Ok(())
}

/// The name is used by another object of its kind.
pub(super) fn in_use<T>(kind: &str, name: &str) -> Result<T, CommandError> {
    refuse(ErrorCode::NameInUse, format!("There is already a {kind} named '{name}'"), "use a different name")
}

/// A path, a reason, an address.
pub(super) fn check_text(what: &str, text: &str) -> Result<(), CommandError> {
    if text.is_empty() || text.len() > TEXT_BYTES_MAX || text.bytes().any(|byte| byte == 0) {
        return refuse(
            ErrorCode::InvalidArgument,
            format!("The {what} is empty, longer than {TEXT_BYTES_MAX} bytes, or has a zero byte in it"),
            format!("give a proper {what}"),
        );
    }
    Ok(())
}

/// `host:port`.
pub(super) fn check_address(address: &str) -> Result<(), CommandError> {
    check_text("address", address)?;
    let good = address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0) && !address.contains(char::is_whitespace)
    });
    if good {
        Ok(())
    } else {
        refuse(ErrorCode::InvalidArgument, format!("'{address}' is no address"), "write host:port")
    }
}

pub(super) fn check_addresses(addresses: &[String]) -> Result<(), CommandError> {
    if addresses.len() > ADDRESSES_MAX {
        return refuse(
            ErrorCode::TooMany,
            format!("{} addresses are too many", addresses.len()),
            format!("give at most {ADDRESSES_MAX}"),
        );
    }
    addresses.iter().try_for_each(|address| check_address(address))
}

/// Text of a daemon, cut to what the state keeps.
pub(super) fn clip(text: &str) -> String {
    let mut end = text.len().min(512);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_scripts_can_type() {
        for good in ["v", "vol-1", "a=b+c/d.e_f", &"x".repeat(31)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        let code = |name: &str| check_name(name).unwrap_err().code;
        assert_eq!(code(""), ErrorCode::NameInvalid);
        assert_eq!(code(&"x".repeat(32)), ErrorCode::NameTooLong);
        assert_eq!(code("a b"), ErrorCode::NameInvalid);
        assert_eq!(code("ä"), ErrorCode::NameInvalid);
        assert_eq!(code("5a2c67b900000000"), ErrorCode::NameInvalid);
    }

    #[test]
    fn an_address_has_a_host_and_a_port() {
        assert!(check_address("127.0.0.1:7072").is_ok());
        assert!(check_address("[::1]:7072").is_ok());
        assert!(check_address("host").is_err());
        assert!(check_address(":7072").is_err());
        assert!(check_address("host:0").is_err());
    }
}
