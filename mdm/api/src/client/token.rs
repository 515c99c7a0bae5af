//! Join tokens: one line of text that is all a new host needs.
//!
//! It holds the system's id, where its MDMs are, the authority's certificate (so that the joiner knows whom it speaks to)
//! and a secret (so that the system knows that it was invited). A secret: it is shown once, to an administrator.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::control::MdmAddress;
use crate::ids::SystemId;

const PREFIX: &str = "ashlar1.";

/// A join token, taken apart.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// The system.
    pub system: SystemId,
    /// Where its MDMs are.
    pub members: Vec<MdmAddress>,
    /// The authority's certificate, DER.
    pub authority_der: Vec<u8>,
    /// What the system knows the invited by.
    pub secret: String,
}

/// The text is not a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a join token: copy the whole line that begins with '{PREFIX}'")]
pub struct BadToken;

impl JoinToken {
    /// As one line.
    pub fn to_text(&self) -> String {
        let bytes = rmp_serde::to_vec_named(self).expect("a token has no unserialisable parts");
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// From one line.
    pub fn parse(text: &str) -> Result<Self, BadToken> {
        let text = text.trim().strip_prefix(PREFIX).ok_or(BadToken)?;
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| BadToken)?;
        rmp_serde::from_slice(&bytes).map_err(|_| BadToken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MdmId;

    #[test]
    fn a_token_survives_its_text_and_a_cut_one_is_refused() {
        let token = JoinToken {
            system: SystemId(5),
            members: vec![MdmAddress { id: MdmId(1), address: "10.0.0.1:6611".to_owned() }],
            authority_der: vec![1, 2, 3],
            secret: "s".to_owned(),
        };
        let text = token.to_text();
        assert!(JoinToken::parse(&format!(" {text}\n")).is_ok_and(|parsed| parsed == token));
        assert!(JoinToken::parse(&text[..text.len() - 3]).is_err());
        assert!(JoinToken::parse("nonsense").is_err());
    }
}
