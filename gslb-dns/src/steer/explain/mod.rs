//! Explains why a client gets its cluster: everything that the decision depends on, and the result.
//!
//! An explanation uses the same snapshot and the same functions as an answer, from the zones on. A
//! name that has records is explained by them; a name that does not exist is explained as such,
//! whatever sites there are. Only exploration is left out, since it is chance.

mod query;
mod records;
mod steered;
mod summary;
mod view;

use http::StatusCode;
use nearcast_fleet::config::Fleet;

use self::query::ExplainQuery;
use self::steered::Context;
use self::view::{ClientView, DnsView, Explanation, SteeredView};
use super::choice::{ClientPrefix, Selection, Wanted};
use super::snapshot::masked;
use super::steering::Steering;
use crate::answer::{Answer, Outcome};
use crate::handler;
use crate::message::registry::type_shown;
use crate::message::{presentation, rcode};
use crate::respond;

impl Steering {
    /// Explains the answer to a query.
    ///
    /// # Errors
    /// The query cannot be read, or no zone here holds the name.
    pub(super) fn explain(
        &self,
        query: &str,
        now_ms: u64,
    ) -> Result<Explanation, (StatusCode, String)> {
        let query =
            ExplainQuery::parse(query).map_err(|message| (StatusCode::BAD_REQUEST, message))?;
        self.explain_name(&query, now_ms)
    }

    fn explain_name(
        &self,
        query: &ExplainQuery,
        now_ms: u64,
    ) -> Result<Explanation, (StatusCode, String)> {
        let qname = query.qname().ok_or_else(|| {
            let message = format!("{:?} is no name that DNS could have", query.host);
            (StatusCode::BAD_REQUEST, message)
        })?;
        let state = self.state();
        // Loaded under the lock, so that both show the same moment.
        let snapshot = self.snapshot.load_full();
        let context = Context {
            state: &state,
            snapshot: &snapshot,
            now_ms,
        };

        let (mut steered, mut absence) = (None, None);
        let select = |site: usize, client: &ClientPrefix, wanted: Wanted| match context
            .explain_selection(site, client, wanted)
        {
            Ok((selection, view)) => {
                steered = view;
                selection
            }
            Err(reason) => {
                absence = Some(reason);
                Selection::Nothing
            }
        };
        let question = (&qname, query.qtype);
        let zones = (snapshot.zones(), snapshot.challenges());
        let (answer, selection) =
            handler::look_up(zones, question, query.requester(), false, select);

        let last_name = records::last_name(&answer, &query.host);
        let dns = DnsView {
            status: status(&answer),
            kind: records::kind(&answer, &selection),
            zone: answer.zone.map(|zone| presentation(&zone.apex)),
            records: records::answer_section(&answer, &selection, &query.host, &last_name),
            catch_all: match steered {
                Some(_) => None,
                None => catch_all(&snapshot.fleet, &query.host),
            },
        };
        let summary = match &steered {
            Some(steered) => summary::of_choice(query.client(), steered),
            None => summary::of_records(query, &answer, &dns, &last_name),
        };
        let summary = match absence {
            Some(absence) => format!("{summary}: {}", absence.reason()),
            None => summary,
        };

        if answer.outcome == Outcome::NotServed {
            let Some((site, steered_name)) = host_of_site(&snapshot.fleet, &query.host) else {
                return Err((StatusCode::NOT_FOUND, summary));
            };
            drop(state);
            return self.explain_site_host(query, (&site, &steered_name), &summary, now_ms);
        }
        Ok(self.explanation(query, dns, steered, summary))
    }

    fn explanation(
        &self,
        query: &ExplainQuery,
        dns: DnsView,
        steered: Option<SteeredView>,
        summary: String,
    ) -> Explanation {
        let client = query.client();
        Explanation {
            host: query.host.clone(),
            r#type: type_shown(query.qtype),
            client: ClientView {
                address: masked(&client),
                source_prefix: client.source_prefix,
                from: if client.from_ecs {
                    "client"
                } else {
                    "resolver"
                },
                resolver: query.resolver,
            },
            dns,
            steered,
            revision: self.revision(),
            summary,
        }
    }

    /// Explains a site's host that no zone here holds, by the site's steered name: the host's own
    /// zone leads there by a CNAME.
    fn explain_site_host(
        &self,
        query: &ExplainQuery,
        (site, steered_name): (&str, &str),
        summary: &str,
        now_ms: u64,
    ) -> Result<Explanation, (StatusCode, String)> {
        let there = ExplainQuery {
            host: steered_name.to_owned(),
            ..query.clone()
        };
        let explained = self.explain_name(&there, now_ms)?;
        let summary = format!(
            "{summary}. It is a host of the site {site}: where a CNAME leads its clients to {steered_name}, {}",
            explained.summary
        );
        Ok(Explanation {
            host: query.host.clone(),
            summary,
            ..explained
        })
    }
}

/// The response code's name.
fn status(answer: &Answer<'_>) -> &'static str {
    match respond::rcode_of(answer) {
        rcode::NXDOMAIN => "NXDOMAIN",
        rcode::YXDOMAIN => "YXDOMAIN",
        rcode::REFUSED => "REFUSED",
        _ => "NOERROR",
    }
}

/// The site whose hosts are `*`, unless another site names this host.
fn catch_all(fleet: &Fleet, host: &str) -> Option<String> {
    let is_named = fleet
        .sites
        .iter()
        .any(|site| site.hosts.iter().any(|h| h == host) || fleet.steered_name(site) == host);
    let any = fleet
        .sites
        .iter()
        .find(|site| site.hosts.iter().any(|h| h == "*"));
    any.filter(|_| !is_named).map(|site| site.name.clone())
}

/// The site that names this host, and its steered name where that is another name.
fn host_of_site(fleet: &Fleet, host: &str) -> Option<(String, String)> {
    let mut sites = fleet.sites.iter();
    let site = sites.find(|site| site.hosts.iter().any(|h| h == host))?;
    let steered_name = fleet.steered_name(site);
    (steered_name != host).then(|| (site.name.clone(), steered_name))
}
