//! What holds up promotions, proofs and rejoins.

use super::*;

/// Empty histories, by which a promotion keeps numbers from being used.
fn stubs(c: &Cluster, i: usize) -> usize {
    let wal = std::fs::read_dir(c.nodes[i].config.data_dir.join("data/pg_wal")).unwrap().flatten();
    let histories = wal.filter(|e| e.file_name().to_string_lossy().ends_with(".history"));
    histories.filter(|e| e.metadata().is_ok_and(|m| m.len() == 0)).count()
}

#[test]
fn a_promotion_that_is_not_over_in_time_leaves_nothing_that_could_end_it_later() {
    unprivileged("obstacles::a_promotion_that_is_not_over_in_time_leaves_nothing_that_could_end_it_later", async {
        let mut c = Cluster::new(22540, 2, Mode::Async, 0);
        let p = c.bootstrap().await;
        let s = 1 - p;
        // A number is left out, for which there is a stub.
        c.begin().await;
        let (mut record, revision) = c.begin().await;
        let base = c.freeze(s, record.term).await.unwrap().position.unwrap();
        (record.phase, record.node) = (Phase::Promoting, Some(c.nodes[s].id.clone()));
        c.put_term(&record, revision).await;
        // The promotion waits for what is to be replayed, and the primary writes something every second.
        let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{}'", base.lsn);
        until("the replay of all", async || (c.value(s, &replayed).await == "t").then_some(())).await;
        let startup = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'startup'";
        signal(c.value(s, startup).await.parse().unwrap(), Signal::SIGSTOP);
        let data = c.nodes[s].config.data_dir.join("data");
        let order = Promote { deadline_ms: 3000, ..c.promotion(s, record.term, base) };
        let before = postgres_of(&data);
        let promotion = c.post::<Promoted>(s, "promote", &order);
        let begun = until("the stub", async || (stubs(&c, s) == 1).then_some(()));
        let (failed, ()) = tokio::join!(promotion, begun);
        let failed = failed.unwrap_err();
        assert!(failed.starts_with("503"), "{failed}");
        // Nobody is left who could still end it; the agent may have started it anew already, as a standby.
        let left = writing_postgres_of(&data).into_iter().filter(|pid| before.contains(pid)).collect::<Vec<_>>();
        assert_eq!((left, stubs(&c, s)), (Vec::new(), 0));

        let (record, revision) = c.begin().await;
        c.insist::<Frozen>(s, "recover", &Recover { term: record.term }).await;
        let (term, promoted) = c.failover_begun(record, revision, s, &[s]).await;
        assert_eq!((term, promoted.fork.timeline), (Term(4), TimelineId(1)));
    });
}

#[test]
fn a_start_that_a_newer_term_overtakes_leaves_no_postmaster_unseen() {
    unprivileged("obstacles::a_start_that_a_newer_term_overtakes_leaves_no_postmaster_unseen", async {
        let mut c = Cluster::new(22525, 2, Mode::Async, 0);
        let p = c.bootstrap().await;
        let s = 1 - p;
        let data = c.nodes[s].config.data_dir.join("data");
        let postmasters = || {
            let of_it = postgres_of(&data).into_iter();
            let parents = of_it.map(|pid| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default());
            parents.filter(|line| line.contains("config_file=")).count()
        };
        // Before its replay has passed where the copy ends it is not started without its primary.
        c.until_state(s, "the quarantine's end", |s| s.quarantine.is_none().then_some(())).await;
        for _ in 0..8 {
            let (older, _) = c.begin().await;
            let (newer, _) = c.begin().await;
            kill_all(&data);
            // The first gives up as soon as the second's term is promised: right after it has started PostgreSQL.
            let order = Recover { term: older.term };
            let first = c.post::<Frozen>(s, "recover", &order);
            let second = async {
                until("the first's promise", async || (c.state(s).await.promise >= older.term).then_some(())).await;
                c.post::<Frozen>(s, "recover", &Recover { term: newer.term }).await
            };
            let (_, second) = tokio::join!(first, second);
            second.unwrap();
            // A child that was just forked still looks like another one.
            until("a single postmaster", async || (postmasters() == 1).then_some(())).await;
        }
    });
}

#[test]
fn orders_that_come_at_the_same_time_lower_no_promise() {
    unprivileged("obstacles::orders_that_come_at_the_same_time_lower_no_promise", async {
        let mut c = Cluster::new(22530, 2, Mode::Async, 0);
        let p = c.bootstrap().await;
        let s = 1 - p;
        for term in (2..60).step_by(2).map(Term) {
            let above = Term(term.0 + 1);
            // The lower one may be refused, and must not be what the file has in the end.
            let (higher, _) = tokio::join!(c.freeze(s, above), c.freeze(s, term));
            higher.unwrap();
            assert_eq!(c.state(s).await.promise, above);
            let refused = c.freeze(s, term).await.unwrap_err();
            assert!(refused.starts_with("409"), "{refused}");
        }
    });
}

#[test]
fn a_delayed_standby_is_promoted_with_all_it_has_received_and_tells_what_was_prepared() {
    unprivileged(
        "obstacles::a_delayed_standby_is_promoted_with_all_it_has_received_and_tells_what_was_prepared",
        async {
            let mut c = Cluster::new(22545, 2, Mode::Async, 0);
            for node in &mut c.nodes {
                node.config.standing.apply_delay_ms = 3_600_000;
                node.config.parameters.insert("max_prepared_transactions".into(), "4".into());
            }
            let p = c.bootstrap().await;
            let s = 1 - p;
            let sql = c.sql(p).await;
            sql.batch_execute("CREATE TABLE t (i int); INSERT INTO t SELECT generate_series(1, 100)").await.unwrap();
            sql.batch_execute("BEGIN; INSERT INTO t VALUES (101); PREPARE TRANSACTION 'in doubt'").await.unwrap();
            let written = c.value(p, "SELECT pg_current_wal_flush_lsn()").await;
            until("the WAL at the standby", async || {
                let query = format!("SELECT pg_last_wal_receive_lsn() >= '{written}'");
                (c.value(s, &query).await == "t").then_some(())
            })
            .await;
            assert_eq!(c.value(s, "SELECT to_regclass('t') IS NULL").await, "t", "it is an hour behind");
            let (term, promoted) = c.failover(s, &[s]).await;
            assert_eq!(c.value(s, "SELECT count(*) FROM t").await, "100");
            assert_eq!(promoted.prepared, Prepared { count: 1, oldest: vec!["in doubt".into()] });
            c.until_streaming(p, s, term).await;
            assert_eq!(c.value(p, "SHOW recovery_min_apply_delay").await, "1h", "who follows is delayed");
        },
    );
}

#[test]
fn commits_that_do_not_wait_yet_are_not_called_protected_whatever_the_setting_says() {
    unprivileged("obstacles::commits_that_do_not_wait_yet_are_not_called_protected_whatever_the_setting_says", async {
        let mut c = Cluster::new(22555, 2, Mode::Async, 0);
        let p = c.bootstrap().await;
        assert_eq!(c.value(p, "SHOW synchronous_standby_names").await, "");
        // It tells all others that there is a list at all.
        let checkpointer = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
        let checkpointer = c.value(p, checkpointer).await.parse().unwrap();
        signal(checkpointer, Signal::SIGSTOP);
        let (policy, _) = c.record::<PolicyRecord>(c.keys.policy()).await.unwrap();
        let sync_names = format!("ANY 1 ({})", c.nodes[1 - p].id);
        let order = Arm { term: Term(1), sync_names, policy_epoch: policy.epoch };
        let armed = c.post::<Armed>(p, "arm", &order);
        let read = until("the list, as it reads", async || {
            let names = c.value(p, "SHOW synchronous_standby_names").await;
            (!names.is_empty()).then_some(())
        });
        let (refused, ()) = tokio::join!(armed, read);
        let refused = refused.unwrap_err();
        assert!(refused.starts_with("503"), "{refused}");
        assert_eq!(c.value(p, "SHOW synchronous_standby_names").await, "", "back to what is on record");
        signal(checkpointer, Signal::SIGCONT);
        c.post::<Armed>(p, "arm", &order).await.unwrap();
        assert_eq!(c.value(p, "SHOW synchronous_standby_names").await, order.sync_names);
    });
}

#[test]
fn a_standby_whose_commits_may_not_wait_yet_is_not_promoted_by_what_its_setting_says() {
    unprivileged(
        "obstacles::a_standby_whose_commits_may_not_wait_yet_is_not_promoted_by_what_its_setting_says",
        async {
            let mut c = Cluster::new(22535, 2, Mode::Strict, 1);
            let p = c.bootstrap().await;
            let s = 1 - p;
            let shown = async |names: &str| {
                let shown = async || (c.value(s, "SHOW synchronous_standby_names").await == names).then_some(());
                until(&format!("the list {names:?} at the standby"), shown).await;
            };
            let since = c.value(p, "SELECT pg_current_wal_flush_lsn()").await.parse().unwrap();
            let suspension = Suspension { term: Term(1), since, since_wall: 0, why: "test".into(), lowered: None };
            slots::put_policy(&c, |p| PolicyRecord { suspended: Some(suspension), ..p }).await;
            shown("").await;
            // By then the checkpointer, which tells all others that there is a list at all, has taken up that there is none.
            c.sql(s).await.batch_execute("CHECKPOINT").await.unwrap();
            let checkpointer = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
            signal(c.value(s, checkpointer).await.parse().unwrap(), Signal::SIGSTOP);
            slots::put_policy(&c, |p| PolicyRecord { suspended: None, ..p }).await;
            shown(&format!("ANY 1 ({})", c.nodes[p].id)).await;

            let (mut record, revision) = c.begin().await;
            let base = c.freeze(s, record.term).await.unwrap().position.unwrap();
            (record.phase, record.node) = (Phase::Promoting, Some(c.nodes[s].id.clone()));
            c.put_term(&record, revision).await;
            let order = Promote { deadline_ms: 5000, ..c.promotion(s, record.term, base) };
            let failed = c.post::<Promoted>(s, "promote", &order).await.unwrap_err();
            assert!(failed.contains("commits were not seen to wait"), "{failed}");
        },
    );
}

#[test]
fn a_list_that_restartpoints_have_shown_to_be_in_force_is_not_proved_again() {
    unprivileged("obstacles::a_list_that_restartpoints_have_shown_to_be_in_force_is_not_proved_again", async {
        let mut c = Cluster::new(22660, 2, Mode::Strict, 1);
        let p = c.bootstrap().await;
        let s = 1 - p;
        // As the next agent finds it.
        let file = "SELECT current_setting('synchronous_standby_names') || CASE WHEN pg_read_file(sourcefile) LIKE \
            '%# not proved%' THEN ', not proved' ELSE '' END FROM pg_settings WHERE name = 'synchronous_standby_names'";
        let list = format!("ANY 1 ({})", c.nodes[p].id);
        let holds = async |what: String| until(&what, async || (c.value(s, file).await == what).then_some(())).await;
        holds(list.clone()).await;
        let since = c.value(p, "SELECT pg_current_wal_flush_lsn()").await.parse().unwrap();
        let suspension = Suspension { term: Term(1), since, since_wall: 0, why: "test".into(), lowered: None };
        slots::put_policy(&c, |p| PolicyRecord { suspended: Some(suspension), ..p }).await;
        holds(String::new()).await;
        slots::put_policy(&c, |p| PolicyRecord { suspended: None, ..p }).await;
        holds(format!("{list}, not proved")).await;
        until("a restartpoint behind another", async || {
            // One is only made of a checkpoint that the primary has made since the last.
            for node in [p, s] {
                c.sql(node).await.batch_execute("CHECKPOINT").await.unwrap();
            }
            (c.value(s, file).await == list).then_some(())
        })
        .await;
    });
}

#[test]
fn a_tail_that_cannot_be_read_as_a_whole_is_set_aside_and_told_of() {
    unprivileged("obstacles::a_tail_that_cannot_be_read_as_a_whole_is_set_aside_and_told_of", async {
        let mut c = Cluster::new(22560, 2, Mode::Async, 0);
        let p = c.bootstrap().await;
        let s = 1 - p;
        c.crash_agent(p).await;
        let (record, revision) = c.begin().await;
        c.freeze(s, record.term).await.unwrap();
        let sql = c.sql(p).await;
        sql.batch_execute("CREATE TABLE lost (i int)").await.unwrap();
        sql.batch_execute("SELECT pg_switch_wal()").await.unwrap();
        sql.batch_execute("CREATE TABLE lost_too (i int)").await.unwrap();
        sql.batch_execute("CHECKPOINT").await.unwrap();
        drop(sql);
        let newest = c.value(p, "SELECT pg_walfile_name(pg_current_wal_insert_lsn())").await;
        let data = c.nodes[p].config.data_dir.join("data");
        kill_all(&data);
        let (term, _) = c.failover_begun(record, revision, s, &[s]).await;
        // What follows the fork is gone, what came later is there.
        for file in std::fs::read_dir(data.join("pg_wal")).unwrap().flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            if name.len() == 24 && name < newest {
                std::fs::remove_file(file.path()).unwrap();
            }
        }
        c.start(p).await;
        c.until_streaming(p, s, term).await;
        let aside = c.nodes[p].config.data_dir.join(format!("data.unexamined-{term}"));
        assert!(aside.join("pg_wal").join(&newest).exists(), "{}", aside.display());
        // What is left of it is on record.
        let (report, _) = c.record::<LossReport>(c.keys.report(term, &c.nodes[p].id)).await.expect("a report");
        let unread = report.unread_to.expect("that it is not whole");
        assert!(report.fork_lsn < unread && unread < report.end_lsn && report.commits > 0, "{report:?}");
        let kept = std::path::PathBuf::from(report.kept_in.unwrap());
        assert!(kept.join(&newest).exists(), "{}", kept.display());
        let told = |s: &AgentState| s.trouble.as_ref().is_some_and(|t| t.contains(&format!("data.unexamined-{term}")));
        c.until_state(p, "that somebody must look", |s| told(s).then_some(())).await;
        std::fs::remove_dir_all(&aside).unwrap();
        c.until_state(p, "that somebody has", |s| (!told(s)).then_some(())).await;
    });
}

#[test]
fn what_users_have_put_into_public_is_not_run_by_agents() {
    unprivileged("obstacles::what_users_have_put_into_public_is_not_run_by_agents", async {
        let mut c = Cluster::new(22585, 2, Mode::Async, 0);
        let p = c.bootstrap().await;
        let s = 1 - p;
        // As PostgreSQL up to 14 makes every database. The types are those of calls that agents make.
        let traps = "GRANT CREATE ON SCHEMA public TO PUBLIC; CREATE ROLE app; SET ROLE app; \
            CREATE FUNCTION public.count(boolean) RETURNS bigint LANGUAGE plpgsql AS $$BEGIN RAISE 'taken'; END$$; \
            CREATE FUNCTION public.joined(bigint, bigint) RETURNS text LANGUAGE plpgsql AS $$BEGIN RAISE 'taken'; END$$; \
            CREATE FUNCTION public.joined(bigint, text) RETURNS text LANGUAGE plpgsql AS $$BEGIN RAISE 'taken'; END$$; \
            CREATE OPERATOR public.|| (FUNCTION = public.joined, LEFTARG = bigint, RIGHTARG = bigint); \
            CREATE OPERATOR public.|| (FUNCTION = public.joined, LEFTARG = bigint, RIGHTARG = text); \
            CREATE FUNCTION public.convert_from(bytea, text) RETURNS text LANGUAGE plpgsql AS $$BEGIN RAISE 'taken'; END$$";
        c.sql(p).await.batch_execute(traps).await.unwrap();
        c.until_replayed(p, &[s]).await;
        // A reader whom the promotion ends.
        let reader = c.sql(s).await;
        reader.batch_execute("SELECT").await.unwrap();
        let (term, _) = c.failover(s, &[s]).await;
        c.until_streaming(p, s, term).await;
        // Whoever does look in `public` is caught.
        let caught = c.sql(s).await.simple_query("SELECT count(true)").await.unwrap_err();
        assert!(caught.as_db_error().is_some_and(|e| e.message() == "taken"), "{caught}");
    });
}

#[test]
fn defaults_that_somebody_has_set_for_all_sessions_do_not_hold_for_agents() {
    unprivileged("obstacles::defaults_that_somebody_has_set_for_all_sessions_do_not_hold_for_agents", async {
        let mut c = Cluster::new(22615, 2, Mode::Async, 0);
        let p = c.bootstrap().await;
        let s = 1 - p;
        // Who observes the primary says why it does not see it.
        let refused = |s: &AgentState| s.trouble.as_ref().is_some_and(|t| t.contains("refuses pgtenure_monitor"));
        let sql = c.sql(p).await;
        // Committed before the sessions are ended: one string would be one transaction, and who comes back meanwhile stays.
        sql.batch_execute("ALTER ROLE pgtenure_monitor NOLOGIN").await.unwrap();
        until("the refusal", async || {
            let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'pgtenure_monitor'";
            sql.batch_execute(end).await.unwrap();
            refused(&c.state(s).await).then_some(())
        })
        .await;
        c.sql(p).await.batch_execute("ALTER ROLE pgtenure_monitor LOGIN").await.unwrap();
        c.until_state(s, "no refusal", |s| (!refused(s)).then_some(())).await;

        // A standby answers no query of the first; nothing can be recorded under the second. All standbys get them.
        let set = "ALTER ROLE ALL SET default_transaction_isolation = serializable; \
            ALTER ROLE ALL SET default_transaction_read_only = on; ALTER ROLE ALL SET statement_timeout = 1";
        c.sql(p).await.batch_execute(set).await.unwrap();
        c.until_replayed(p, &[s]).await;
        // By a connection that was made before an agent goes on as it was.
        c.crash_agent(s).await;
        c.start(s).await;
        c.until_streaming(s, p, Term(1)).await;
        let (term, _) = c.failover(s, &[s]).await;
        assert_eq!(c.value(s, "SELECT max(term) FROM pgtenure.term").await, term.to_string());
        c.until_streaming(p, s, term).await;
        // What would end or stop recovery is ours to set.
        let targets =
            "SELECT string_agg(name, ' ') FROM pg_settings WHERE name ~ '^recovery_(target|min)|^primary_|_temp_slot$'";
        for name in c.value(s, targets).await.split(' ') {
            assert!(OWNED_PARAMETERS.iter().any(|(owned, _)| *owned == name), "{name}");
        }
    });
}

#[test]
fn a_table_of_terms_that_was_dropped_does_not_forbid_every_promotion() {
    unprivileged("obstacles::a_table_of_terms_that_was_dropped_does_not_forbid_every_promotion", async {
        let mut c = Cluster::new(22590, 2, Mode::Async, 0);
        let p = c.bootstrap().await;
        let s = 1 - p;
        c.sql(p).await.batch_execute("DROP SCHEMA pgtenure CASCADE").await.unwrap();
        c.until_replayed(p, &[s]).await;
        let (term, _) = c.failover(s, &[s]).await;
        assert_eq!(c.value(s, "SELECT term FROM pgtenure.term").await, term.to_string());
        c.until_streaming(p, s, term).await;
    });
}
