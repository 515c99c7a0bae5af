//! Passwords: argon2id in PHC form, checked on threads for blocking work, few at a time.

use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use argon2::password_hash::SaltString;
use argon2::{Argon2, PasswordHash, PasswordHasher, PasswordVerifier};
use tokio::sync::Semaphore;

/// Checks at a time: each takes 19 MiB and some 20 ms of a processor.
const CHECKS_AT_ONCE: usize = 2;
/// The shortest password that a new system accepts.
pub const PASSWORD_CHARS_MIN: usize = 8;

/// The hash of a new password.
pub fn hash(password: &str) -> anyhow::Result<String> {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(|error| anyhow!("no randomness: {error}"))?;
    let salt = SaltString::encode_b64(&salt).map_err(|error| anyhow!("salt: {error}"))?;
    let hash = Argon2::default().hash_password(password.as_bytes(), &salt);
    Ok(hash.map_err(|error| anyhow!("password hash: {error}"))?.to_string())
}

/// Refuses a password that is too easy to guess.
pub fn demand_strong(password: &str) -> anyhow::Result<()> {
    if password.chars().count() < PASSWORD_CHARS_MIN {
        bail!("the admin password is too short: give at least {PASSWORD_CHARS_MIN} characters");
    }
    Ok(())
}

/// Checks passwords, a few at a time.
#[derive(Clone)]
pub struct Checker {
    permits: Arc<Semaphore>,
    /// Checked in place of an account that does not exist, so that time does not tell which names do.
    nobody: Arc<str>,
}

impl Checker {
    /// Ready to check.
    pub fn new() -> anyhow::Result<Self> {
        let nobody = hash("nobody has this password").context("password check")?;
        Ok(Self { permits: Arc::new(Semaphore::new(CHECKS_AT_ONCE)), nobody: nobody.into() })
    }

    /// True if the password is that of the hash.
    pub async fn check(&self, hash: Option<String>, password: String) -> bool {
        let Ok(_permit) = self.permits.acquire().await else { return false };
        let exists = hash.is_some();
        let hash = hash.unwrap_or_else(|| self.nobody.to_string());
        let checked = tokio::task::spawn_blocking(move || {
            PasswordHash::new(&hash)
                .is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
        });
        checked.await.unwrap_or(false) && exists
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_right_password_of_an_account_that_exists_passes() {
        let checker = Checker::new().unwrap();
        let hashed = hash("correct horse").unwrap();
        assert!(hashed.starts_with("$argon2id$"));
        assert!(checker.check(Some(hashed.clone()), "correct horse".to_owned()).await);
        assert!(!checker.check(Some(hashed), "battery staple".to_owned()).await);
        assert!(!checker.check(None, "nobody has this password".to_owned()).await);
        assert!(!checker.check(Some("not a hash".to_owned()), "x".to_owned()).await);
    }
}
