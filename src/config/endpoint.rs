//! Addresses of the form `scheme://[user@]host[:port]`: of Redis and of NATS.

use std::fmt;

use super::error::{ConfigError, Place};
use super::postgres::{PostgresHost, parse_host, split_port, url_error};
use super::url::{UrlProblem, bad, percent_decode, percent_encode};

/// How a kind of server writes its addresses.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Form {
    /// The product, as people write it.
    pub(super) product: &'static str,
    /// In clear.
    pub(super) scheme: &'static str,
    /// Over TLS, which is not supported yet.
    pub(super) tls_scheme: &'static str,
    /// The product's own port.
    pub(super) default_port: u16,
    /// What to write.
    pub(super) example: &'static str,
    /// What a path after the address might have meant, and why it is not taken.
    pub(super) path: &'static str,
    /// Where a secret belongs.
    pub(super) secret_hint: &'static str,
}

/// A server and the user to log in as. Prints as a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    form: &'static Form,
    /// A host name or IP address (IPv6 without brackets).
    pub host: String,
    /// The port.
    pub port: u16,
    /// The user; absent: the server's own default, or none.
    pub user: Option<String>,
}

impl Endpoint {
    /// A server on this machine.
    pub(super) fn local(form: &'static Form, port: u16, user: Option<&str>) -> Self {
        Self { form, host: "127.0.0.1".to_owned(), port, user: user.map(str::to_owned) }
    }

    pub(super) fn parse(form: &'static Form, text: &str) -> Result<Self, UrlProblem> {
        let wrong = |problem: &str| Err(UrlProblem::Bad(problem.to_owned(), Some(format!("write {}", form.example))));
        let rest = match text.split_once("://") {
            Some((scheme, rest)) if scheme == form.scheme => rest,
            Some((scheme, _)) if scheme == form.tls_scheme => {
                return bad(&format!("TLS to {} is not supported by this version", form.product));
            }
            _ => return wrong(&format!("is not a {} url", form.product)),
        };
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        // A password with a raw `/`, `?` or `#` in it moves the `@` out of the authority.
        if !authority.contains('@') && tail.contains('@') {
            return Err(UrlProblem::Secret);
        }
        let (user, place) = match authority.rsplit_once('@') {
            Some((user, _)) if user.contains([':', '@']) => return Err(UrlProblem::Secret),
            Some((user, place)) => (user, place),
            None => ("", authority),
        };
        match tail {
            "" | "/" => {}
            _ if tail.starts_with('/') => return wrong(form.path),
            _ => return wrong("holds more than user, host and port"),
        }
        let Some(user) = percent_decode(user) else {
            return bad("holds a `%` that does not begin an encoded character (write `%` as %25)");
        };
        let (host, port) = split_port(place)?;
        let host = match parse_host(host)? {
            PostgresHost::Tcp(host) if !host.is_empty() => host,
            PostgresHost::Tcp(_) => return wrong("names no host"),
            PostgresHost::Unix(_) => return wrong("a unix socket cannot be used"),
        };
        let port = match port.map(str::parse::<u16>) {
            None => form.default_port,
            Some(Ok(port)) if port > 0 => port,
            Some(_) => return bad("the port is not a number from 1 to 65535"),
        };
        Ok(Self { form, host, port, user: (!user.is_empty()).then_some(user) })
    }

    /// Another address of the same kind of server, as an argument gives it. The user is the URL's, else this one's.
    pub(super) fn replaced(&self, url: &str) -> Result<Self, ConfigError> {
        let mut endpoint = Self::parse(self.form, url)
            .map_err(|problem| url_error(problem, Place::argument("--target"), self.form.secret_hint))?;
        if endpoint.user.is_none() {
            endpoint.user.clone_from(&self.user);
        }
        Ok(endpoint)
    }

    /// Host and port, as a person writes them.
    pub fn address(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.form.scheme)?;
        if let Some(user) = &self.user {
            write!(f, "{}@", percent_encode(user, b""))?;
        }
        f.write_str(&self.address())
    }
}
