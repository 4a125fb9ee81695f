//! Tokens of one issuer (JSON Web Tokens, RFC 7519).
//!
//! Owns what makes a token good: one algorithm, fixed by the policy and never taken from the token; one
//! issuer; one of the audiences; a time within `nbf` and `exp`; a key of the issuer's. Keys come from
//! files, never from a token's header and never over the network.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{JwkSet, PublicKeyUse};
use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, Validation, decode, decode_header, get_current_timestamp,
};
use serde_json::{Map, Value};

use super::BadCredentials;

/// Shortest shared secret, in bytes (RFC 7518 §3.2 for HS256; longer for its relatives).
const SECRET_BYTES_MIN: usize = 32;
/// Longest subject, in bytes.
const SUBJECT_BYTES_MAX: usize = 256;
/// Claims that are one text with spaces between the names (RFC 8693 §4.2; `scp` is what some issuers call it).
const SPACED_CLAIMS: [&str; 2] = ["scope", "scp"];
/// Most groups of a token that are looked at.
const GROUPS_MAX: usize = 256;

/// What a policy says about tokens.
pub(super) struct TokenSettings {
    pub(super) algorithm: Algorithm,
    pub(super) issuer: String,
    pub(super) audiences: Vec<String>,
    pub(super) groups_claim: Option<String>,
    pub(super) leeway_seconds: u64,
}

/// Judges tokens.
pub(super) struct Tokens {
    validation: Validation,
    keys: Vec<IssuerKey>,
    groups_claim: Option<String>,
}

/// Who holds a token.
pub(super) struct Holder {
    pub(super) sub: String,
    pub(super) groups: Vec<String>,
    /// How much longer the token is good.
    pub(super) good_for: Duration,
}

struct IssuerKey {
    id: Option<String>,
    key: DecodingKey,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("algorithms", &self.validation.algorithms).finish_non_exhaustive()
    }
}

/// The algorithms that can be named, for whoever names another.
pub(super) const ALGORITHMS: &str =
    "HS256, HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA";

/// Reads an algorithm's name.
pub(super) fn algorithm(name: &str) -> Option<Algorithm> {
    Algorithm::from_str(name).ok()
}

impl Tokens {
    /// Reads the issuer's keys.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub(super) fn open(settings: TokenSettings, key_file: &Path) -> Result<Self, String> {
        // Of what is linked the one provider; an error means that it was chosen before.
        let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
        let bytes = std::fs::read(key_file).map_err(|error| error.to_string())?;
        let mut validation = Validation::new(settings.algorithm);
        validation.set_issuer(&[settings.issuer]);
        validation.set_audience(&settings.audiences);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = settings.leeway_seconds;
        let keys = read_keys(settings.algorithm, &bytes)?;
        Ok(Self { validation, keys, groups_claim: settings.groups_claim })
    }

    /// Who holds a good token.
    pub(super) fn verify(&self, token: &str) -> Result<Holder, BadCredentials> {
        let header = decode_header(token).map_err(|_| BadCredentials::Unreadable)?;
        if header.crit.is_some() {
            return Err(BadCredentials::Unreadable); // asks for what is not understood here
        }
        let key = self.key(header.kid.as_deref()).ok_or(BadCredentials::Signature)?;
        let claims =
            decode::<Map<String, Value>>(token, key, &self.validation).map_err(|e| reason(&e))?.claims;
        let sub = claims.get("sub").and_then(Value::as_str).ok_or(BadCredentials::Claims)?;
        if sub.is_empty() || sub.len() > SUBJECT_BYTES_MAX {
            return Err(BadCredentials::Subject);
        }
        let groups = self.groups_claim.as_ref().and_then(|name| Some(names(name, claims.get(name)?)));
        // A fraction of a second is cut off, as it was when the token was judged.
        let ends = claims.get("exp").and_then(|exp| exp.as_u64().or(exp.as_f64().map(|exp| exp as u64)));
        let ends = ends.ok_or(BadCredentials::Claims)?.saturating_add(self.validation.leeway);
        Ok(Holder {
            sub: sub.to_owned(),
            groups: groups.unwrap_or_default(),
            good_for: Duration::from_secs(ends.saturating_sub(get_current_timestamp())),
        })
    }

    /// The key a token names; a token that names none is the only key's.
    fn key(&self, id: Option<&str>) -> Option<&DecodingKey> {
        let found = match (id, self.keys.as_slice()) {
            (_, [only]) if only.id.is_none() => only,
            (None, [only]) => only,
            (None, _) => return None,
            (Some(id), keys) => keys.iter().find(|key| key.id.as_deref() == Some(id))?,
        };
        Some(&found.key)
    }
}

/// The groups that a claim names: a list of texts, or one. In any other claim than those with spaces between
/// names a space is part of the name: who may choose a name such as `x admins` is not in `admins`.
fn names(claim: &str, value: &Value) -> Vec<String> {
    match value {
        Value::Array(values) => {
            values.iter().filter_map(Value::as_str).take(GROUPS_MAX).map(str::to_owned).collect()
        }
        Value::String(text) if SPACED_CLAIMS.contains(&claim) => {
            text.split_whitespace().take(GROUPS_MAX).map(str::to_owned).collect()
        }
        Value::String(text) => vec![text.clone()],
        _ => Vec::new(),
    }
}

fn reason(error: &jsonwebtoken::errors::Error) -> BadCredentials {
    match error.kind() {
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName | ErrorKind::UnsupportedAlgorithm => {
            BadCredentials::Algorithm
        }
        ErrorKind::InvalidSignature => BadCredentials::Signature,
        ErrorKind::ExpiredSignature => BadCredentials::Expired,
        ErrorKind::ImmatureSignature => BadCredentials::Early,
        ErrorKind::InvalidIssuer => BadCredentials::Issuer,
        ErrorKind::InvalidAudience => BadCredentials::Audience,
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) => BadCredentials::Claims,
        _ => BadCredentials::Unreadable,
    }
}

fn read_keys(algorithm: Algorithm, bytes: &[u8]) -> Result<Vec<IssuerKey>, String> {
    let family = algorithm.family();
    let one = |key| Ok(vec![IssuerKey { id: None, key }]);
    let text = std::str::from_utf8(bytes).unwrap_or_default().trim();
    if family == AlgorithmFamily::Hmac {
        if text.starts_with("-----BEGIN") || text.starts_with('{') {
            return Err(format!("holds a public key, but {algorithm:?} wants a shared secret"));
        }
        let secret = if text.is_empty() { bytes } else { text.as_bytes() };
        if secret.len() < SECRET_BYTES_MIN {
            return Err(format!(
                "has {} bytes: a shared secret has at least {SECRET_BYTES_MIN}, of real randomness",
                secret.len()
            ));
        }
        return one(DecodingKey::from_secret(secret));
    }
    if text.contains("PRIVATE KEY-----") {
        return Err("holds a private key: give the issuer's public one".into());
    }
    if text.starts_with('{') {
        return read_set(algorithm, text);
    }
    let pem = match family {
        AlgorithmFamily::Rsa => DecodingKey::from_rsa_pem(bytes),
        AlgorithmFamily::Ec => DecodingKey::from_ec_pem(bytes),
        AlgorithmFamily::Ed | AlgorithmFamily::Hmac => DecodingKey::from_ed_pem(bytes),
    };
    one(pem.map_err(|error| format!("holds no public key in PEM or JWKS that fits {algorithm:?}: {error}"))?)
}

/// The keys of a set that are for signatures of this algorithm; others may stand beside them.
fn read_set(algorithm: Algorithm, text: &str) -> Result<Vec<IssuerKey>, String> {
    let set: JwkSet = serde_json::from_str(text).map_err(|error| format!("is no JWKS: {error}"))?;
    let mut keys: Vec<IssuerKey> = Vec::new();
    for jwk in &set.keys {
        let signs = jwk.common.public_key_use.as_ref().is_none_or(|used| *used == PublicKeyUse::Signature);
        let named = jwk.common.key_algorithm.as_ref().map(ToString::to_string);
        let fits = named.is_none_or(|name| name == format!("{algorithm:?}"));
        let Some(key) = DecodingKey::from_jwk(jwk).ok().filter(|key| key.family() == algorithm.family())
        else {
            continue;
        };
        if !signs || !fits {
            continue;
        }
        let id = jwk.common.key_id.clone();
        if keys.iter().any(|known| known.id == id) {
            return Err(format!("names two keys {:?}: each needs a kid of its own", id.unwrap_or_default()));
        }
        keys.push(IssuerKey { id, key });
    }
    if keys.is_empty() { Err(format!("has no key for signatures with {algorithm:?}")) } else { Ok(keys) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_scope_has_spaces_between_names() {
        assert_eq!(names("groups", &json!(["staff", 7, "sales team"])), ["staff", "sales team"]);
        assert_eq!(names("groups", &json!("sales admins")), ["sales admins"]);
        assert_eq!(names("scope", &json!("read write")), ["read", "write"]);
        assert_eq!(names("scp", &json!(["read", "write all"])), ["read", "write all"]);
        assert!(names("groups", &json!({ "admins": true })).is_empty());
    }
}
