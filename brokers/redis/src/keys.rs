//! The names of keys and channels. The kind stands before the name, so that none can be another's.

use runcast_broker::Name;

/// Prefixes with the namespace in braces, which Redis Cluster takes as the part to hash: scripts
/// touch several keys and need them all in one place.
#[derive(Debug, Clone)]
pub(crate) struct Keys(String);

impl Keys {
    pub(crate) fn new(namespace: &Name) -> Self {
        Self(format!("{{{namespace}}}:"))
    }

    pub(crate) fn queue(&self, queue: &Name) -> String {
        format!("{}queue:{queue}", self.0)
    }

    pub(crate) fn bell(&self, queue: &Name) -> String {
        format!("{}bell:{queue}", self.0)
    }

    pub(crate) fn delayed(&self, queue: &Name) -> String {
        format!("{}delayed:{queue}", self.0)
    }

    pub(crate) fn dead(&self, queue: &Name) -> String {
        format!("{}dead:{queue}", self.0)
    }

    pub(crate) fn topic(&self, topic: &Name) -> String {
        format!("{}topic:{topic}", self.0)
    }

    /// The topic whose channel this is.
    pub(crate) fn topic_of(&self, channel: &str) -> Option<Name> {
        Name::new(channel.strip_prefix(&self.0)?.strip_prefix("topic:")?).ok()
    }

    pub(crate) fn consumers(&self) -> String {
        format!("{}consumers", self.0)
    }

    pub(crate) fn nodes(&self) -> String {
        format!("{}nodes", self.0)
    }

    pub(crate) fn payloads(&self) -> String {
        format!("{}payloads", self.0)
    }
}
