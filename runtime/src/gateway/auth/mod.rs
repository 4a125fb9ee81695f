//! Who calls, and what they may do.
//!
//! Owns the policy: API keys, the issuer whose tokens are good, and the rules. Everything that no rule
//! allows is refused. Never looks at the name a proxy or caller claims in a header, and never asks
//! whether an actor exists: a refusal says the same for those that do and those that do not. In: the
//! `Authorization` header and what is asked for. Out: a [`Caller`], or the refusal.
//! Bearer credentials are those of RFC 6750, tokens those of RFC 7519.

mod file;
mod keys;
mod tokens;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use tokio::time::Instant;

use super::errors::Problem;
use super::routes::single;
use super::{Gate, ws};
pub use file::PolicyError;
use keys::KeyRing;
pub use keys::{KeyNameError, NewKey};
use tokens::Tokens;

/// What the following of an actor's events is called in a rule.
pub const EVENTS_METHOD: &str = "events";
/// Longest credential that is looked at, in bytes.
const CREDENTIAL_BYTES_MAX: usize = 8 * 1024;
/// Bits of an IPv6 address that name its network: whoever has one address has all behind these.
const IPV6_NETWORK_BITS: u32 = 64;

/// Who a request comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Principal {
    /// Nobody known, at this address (IPv6: network).
    Anonymous(IpAddr),
    /// The holder of an API key, by its name.
    Key(Arc<str>),
    /// The subject of a token.
    User(Arc<str>),
}

impl Principal {
    pub(super) fn at(address: IpAddr) -> Self {
        Self::Anonymous(match address.to_canonical() {
            IpAddr::V6(v6) => {
                let network = u128::MAX << (u128::BITS - IPV6_NETWORK_BITS);
                Ipv6Addr::from_bits(v6.to_bits() & network).into()
            }
            v4 => v4,
        })
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous(_) => f.write_str("anonymous"),
            Self::Key(name) => write!(f, "key:{name}"),
            Self::User(sub) => write!(f, "user:{sub}"),
        }
    }
}

/// Who a request comes from, with the groups they are in.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) principal: Principal,
    groups: Arc<[String]>,
    /// When the credentials end, if they do: what goes on for long must not go on beyond.
    pub(super) ends: Option<Instant>,
}

/// The address a connection comes from, as the system tells it. Put beside each request by the server.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClientAddress(pub(super) IpAddr);

impl FromRequestParts<Arc<Gate>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gate: &Arc<Gate>) -> Result<Self, Problem> {
        let &ClientAddress(address) =
            parts.extensions.get().expect("the server puts the address beside each request");
        let anonymous = Self { principal: Principal::at(address), groups: Arc::default(), ends: None };
        let Some(policy) = &gate.config.policy else { return Ok(anonymous) };
        match policy.authenticate(&parts.headers) {
            Ok(known) => Ok(known.unwrap_or(anonymous)),
            Err(problem) => {
                gate.metrics.denied("bad credentials");
                Err(problem)
            }
        }
    }
}

impl Caller {
    /// Passes if the gateway has no policy or a rule of it allows the call.
    pub(super) fn may(&self, gate: &Gate, kind: &str, key: &str, method: &str) -> Result<(), Problem> {
        let Some(policy) = &gate.config.policy else { return Ok(()) };
        if policy.allows(self, kind, key, method) {
            return Ok(());
        }
        if matches!(self.principal, Principal::Anonymous(_)) {
            gate.metrics.denied("no credentials");
            return Err(Problem::NotAuthenticated);
        }
        gate.metrics.denied("forbidden");
        Err(Problem::Forbidden { who: self.principal.to_string(), what: format!("{kind}/{key} {method}") })
    }
}

/// Why credentials are refused. The texts go to whoever sent them and hold no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadCredentials {
    #[error("the header Authorization is not of the form: Bearer CREDENTIAL")]
    Scheme,
    #[error("the credential is longer than {CREDENTIAL_BYTES_MAX} bytes")]
    Long,
    #[error("the API key is not one of this gateway's")]
    Key,
    #[error("the credential is no API key, and this gateway takes no tokens")]
    NoTokens,
    #[error("the token cannot be read")]
    Unreadable,
    #[error("the token is not signed with the algorithm of this gateway's issuer")]
    Algorithm,
    #[error("the token is not signed by this gateway's issuer")]
    Signature,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    Early,
    #[error("the token is of another issuer")]
    Issuer,
    #[error("the token is for another audience")]
    Audience,
    #[error("the token lacks one of exp, iss, aud, sub, or one of them cannot be read")]
    Claims,
    #[error("the token's sub is empty or too long")]
    Subject,
}

/// Who may come in and what they may do; everything else is refused.
pub struct Policy {
    keys: KeyRing,
    tokens: Option<Tokens>,
    rules: Vec<Rule>,
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tokens = self.tokens.is_some();
        f.debug_struct("Policy").field("tokens", &tokens).field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Policy {
    /// Who sends these headers; `None` for somebody without credentials.
    fn authenticate(&self, headers: &HeaderMap) -> Result<Option<Caller>, Problem> {
        let judged = match single(headers, &AUTHORIZATION, "Authorization")? {
            Some(header) => self.judge(header.as_bytes()),
            None => match ws::credential(headers) {
                Some(credential) => self.judge_credential(credential),
                None => return Ok(None),
            },
        };
        judged.map(Some).map_err(Problem::BadCredentials)
    }

    fn judge(&self, header: &[u8]) -> Result<Caller, BadCredentials> {
        let header = std::str::from_utf8(header).map_err(|_| BadCredentials::Scheme)?;
        let (scheme, credential) = header.split_once(' ').ok_or(BadCredentials::Scheme)?;
        let credential = credential.trim();
        if !scheme.eq_ignore_ascii_case("bearer") || credential.is_empty() {
            return Err(BadCredentials::Scheme);
        }
        self.judge_credential(credential)
    }

    fn judge_credential(&self, credential: &str) -> Result<Caller, BadCredentials> {
        if credential.len() > CREDENTIAL_BYTES_MAX {
            return Err(BadCredentials::Long);
        }
        if keys::looks_like_one(credential) {
            let (name, groups) = self.keys.find(credential).ok_or(BadCredentials::Key)?;
            return Ok(Caller { principal: Principal::Key(name), groups, ends: None });
        }
        let tokens = self.tokens.as_ref().ok_or(BadCredentials::NoTokens)?;
        let holder = tokens.verify(credential)?;
        Ok(Caller {
            principal: Principal::User(holder.sub.into()),
            groups: holder.groups.into(),
            ends: Instant::now().checked_add(holder.good_for),
        })
    }

    /// Whether a rule is for everybody, also without credentials.
    pub(super) fn names_anonymous(&self) -> bool {
        self.rules.iter().any(|rule| rule.who.contains(&Who::Anonymous))
    }

    fn allows(&self, caller: &Caller, kind: &str, key: &str, method: &str) -> bool {
        self.rules.iter().any(|rule| rule.allows(caller, kind, key, method))
    }
}

/// One `[[allow]]` of a policy.
#[derive(Debug)]
struct Rule {
    who: Vec<Who>,
    /// `None`: every kind.
    kind: Option<String>,
    /// `None`: every handler, and events.
    methods: Option<BTreeSet<String>>,
    keys: Keys,
}

#[derive(Debug, PartialEq, Eq)]
enum Who {
    /// Everybody, also without credentials.
    Anonymous,
    Key(String),
    /// Everybody with a token.
    Users,
    User(String),
    Group(String),
}

/// The actors of a rule, by their keys.
#[derive(Debug)]
enum Keys {
    Any,
    Exactly(Template),
    Prefix(Template),
}

/// Text in which the caller's own subject may stand once.
#[derive(Debug)]
struct Template {
    before: String,
    /// What follows the subject, if it stands here.
    after: Option<String>,
}

impl Rule {
    fn allows(&self, caller: &Caller, kind: &str, key: &str, method: &str) -> bool {
        self.who.iter().any(|who| who.is(caller))
            && self.kind.as_deref().is_none_or(|known| known == kind)
            && self.methods.as_ref().is_none_or(|known| known.contains(method))
            && self.keys.hold(&caller.principal, key)
    }
}

impl Who {
    fn is(&self, caller: &Caller) -> bool {
        match (self, &caller.principal) {
            (Self::Anonymous, _) | (Self::Users, Principal::User(_)) => true,
            (Self::Key(name), Principal::Key(key)) => **name == **key,
            (Self::User(name), Principal::User(sub)) => **name == **sub,
            (Self::Group(name), Principal::Key(_) | Principal::User(_)) => caller.groups.contains(name),
            _ => false,
        }
    }
}

impl Keys {
    fn hold(&self, principal: &Principal, key: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exactly(template) => template.rest_of(principal, key).is_some_and(str::is_empty),
            Self::Prefix(template) => {
                template.separates(principal) && template.rest_of(principal, key).is_some()
            }
        }
    }
}

impl Template {
    /// What of `key` is behind this text, filled in for the caller.
    fn rest_of<'a>(&self, principal: &Principal, key: &'a str) -> Option<&'a str> {
        let rest = key.strip_prefix(self.before.as_str())?;
        let Some(after) = &self.after else { return Some(rest) };
        let Principal::User(sub) = principal else { return None };
        rest.strip_prefix(&**sub)?.strip_prefix(after.as_str())
    }

    /// Whether no other subject's keys can begin with the caller's prefix: the subject `a/b` would reach
    /// into what `{sub}/` gives to `a`. It cannot if the subject lacks the character behind it.
    fn separates(&self, principal: &Principal) -> bool {
        match (&self.after, principal) {
            (None, _) => true,
            (Some(after), Principal::User(sub)) => after.chars().next().is_some_and(|end| !sub.contains(end)),
            (Some(_), _) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_of_one_network_are_one() {
        let at = |text: &str| Principal::at(text.parse().unwrap());
        assert_eq!(at("2001:db8:1:2::1"), at("2001:db8:1:2:ffff::9"));
        assert_ne!(at("2001:db8:1:2::1"), at("2001:db8:1:3::1"));
        assert_eq!(at("::ffff:10.0.0.1"), at("10.0.0.1"));
        assert_ne!(at("10.0.0.1"), at("10.0.0.2"));
    }

    #[test]
    fn a_prefix_with_the_subject_reaches_no_other_subjects_actors() {
        let template = |text: &str| match text.split_once("{sub}") {
            None => Template { before: text.into(), after: None },
            Some((before, after)) => Template { before: before.into(), after: Some(after.into()) },
        };
        let user = |sub: &str| Principal::User(sub.into());
        let own = Keys::Prefix(template("eu/{sub}/"));
        assert!(own.hold(&user("al"), "eu/al/cart"));
        for (sub, key) in [("al", "eu/alice/cart"), ("al", "al/cart"), ("al", "eu/al"), ("a", "eu/al/x")] {
            assert!(!own.hold(&user(sub), key), "{sub} {key}");
        }
        // both would be reached by al, too
        assert!(!own.hold(&user("al/x"), "eu/al/x/cart"));
        assert!(!Keys::Prefix(template("{sub}aa")).hold(&user("xa"), "xaaa"));
        let exact = Keys::Exactly(template("{sub}"));
        assert!(exact.hold(&user("a/b"), "a/b") && !exact.hold(&user("a"), "a/b"));
        assert!(!exact.hold(&Principal::Key("a".into()), "a"), "a key has no subject");
    }
}
