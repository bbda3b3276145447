//! Who is told when something is wrong: `[alerts]`; and where the daemon listens: `[server]`.

use std::net::SocketAddr;
use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::error::ConfigError;
use super::postgres::url_error;
use super::reader::Section;
use super::secret;
use super::url::parse_address;

/// Where the daemon listens where nothing else is said.
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9187);

/// Where the address of a notifier is: a webhook's is often a secret itself, and then in a file.
#[derive(Clone, Debug)]
pub enum NotifierAddress {
    /// In the configuration.
    Url(Url),
    /// In this file.
    File(PathBuf),
}

/// An address that is told of alerts.
#[derive(Clone, Debug)]
pub struct NotifierConfig {
    /// Where its address is.
    pub address: NotifierAddress,
    /// The file with a token for `Authorization: Bearer`.
    pub token_file: Option<PathBuf>,
    /// Certificates (PEM) that are trusted in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// Where it stands in the configuration: `alerts.webhook`.
    pub key: &'static str,
}

impl NotifierConfig {
    /// The address and the token, read from their files.
    ///
    /// # Errors
    /// A file that cannot be used, or that holds no address. The text of an address is in no error.
    pub fn secrets(&self) -> Result<(Url, Option<SecretString>), ConfigError> {
        let token = |path: &PathBuf| secret::read_file(path, &format!("{}.token_file", self.key));
        let token = self.token_file.as_ref().map(token).transpose()?;
        let url = match &self.address {
            NotifierAddress::Url(url) => url.clone(),
            NotifierAddress::File(path) => {
                let key = format!("{}.url_file", self.key);
                let text = secret::read_file(path, &key)?;
                parse_address(text.expose_secret().trim()).map_err(|_| ConfigError::SecretFile {
                    key,
                    path: path.clone(),
                    problem: "it does not hold an http:// or https:// address".to_owned(),
                })?
            }
        };
        Ok((url, token))
    }
}

/// Who is told.
#[derive(Clone, Debug, Default)]
pub struct AlertsConfig {
    /// What is watched over, for whoever gets alerts of several: a label of every alert.
    pub deployment: Option<String>,
    /// Gets each event as JSON by POST.
    pub webhook: Option<NotifierConfig>,
    /// An Alertmanager, by its API v2.
    pub alertmanager: Option<NotifierConfig>,
}

impl AlertsConfig {
    /// Who is told, by name.
    pub fn receivers(&self) -> Vec<(&'static str, &NotifierConfig)> {
        let named = [("webhook", &self.webhook), ("alertmanager", &self.alertmanager)];
        named.into_iter().filter_map(|(name, config)| Some((name, config.as_ref()?))).collect()
    }

    /// The names of those who are told.
    pub fn receiver_names(&self) -> Vec<&'static str> {
        self.receivers().into_iter().map(|(name, _)| name).collect()
    }
}

/// The daemon's HTTP server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Where it listens.
    pub listen: SocketAddr,
}

pub(super) fn read(root: &Section<'_>) -> AlertsConfig {
    let section = root.section("alerts");
    let notifier =
        |name: &str, key: &'static str| section.has(name).then(|| read_notifier(&section.section(name), key)).flatten();
    AlertsConfig {
        deployment: section.text("deployment").map(str::to_owned),
        webhook: notifier("webhook", "alerts.webhook"),
        alertmanager: notifier("alertmanager", "alerts.alertmanager"),
    }
}

fn read_notifier(section: &Section<'_>, key: &'static str) -> Option<NotifierConfig> {
    let hint =
        "put an address that is a secret into a file named by `url_file`, a token into one named by `token_file`";
    let url = section.text("url").and_then(|text| {
        parse_address(text).map_err(|problem| section.report(url_error(problem, *section.at("url"), hint))).ok()
    });
    let file = section.path("url_file");
    match (section.has("url"), section.has("url_file")) {
        (true, true) => section.bad("url_file", "there is a url too", Some("keep one of the two".to_owned())),
        (false, false) => section.report(ConfigError::Missing { at: section.at("url") }),
        _ => {}
    }
    let (token_file, ca_file) = (section.path("token_file"), section.path("ca_file"));
    let address = url.map(NotifierAddress::Url).or(file.map(NotifierAddress::File))?;
    Some(NotifierConfig { address, token_file, ca_file, key })
}

pub(super) fn read_server(root: &Section<'_>) -> ServerConfig {
    let section = root.section("server");
    let listen = section.text("listen").and_then(|text| match text.parse() {
        Ok(listen) => Some(listen),
        Err(_) => {
            let hint = "an IP address and a port, such as \"127.0.0.1:9187\" or \"[::]:9187\"".to_owned();
            section.bad("listen", "is no address to listen on", Some(hint));
            None
        }
    });
    ServerConfig { listen: listen.unwrap_or(DEFAULT_LISTEN) }
}
