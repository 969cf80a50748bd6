import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.StringReader;
import java.io.StringWriter;
import java.nio.charset.StandardCharsets;
import java.sql.*;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.Callable;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.postgresql.PGConnection;
import org.postgresql.PGStatement;
import org.postgresql.copy.CopyIn;
import org.postgresql.largeobject.LargeObject;
import org.postgresql.largeobject.LargeObjectManager;
import org.postgresql.util.PSQLException;

/** What applications do with pgjdbc, once for each way in which the driver can talk to its server. */
public class Modes {
    interface Act { Object run() throws Exception; }

    static String prefix = "";

    static String quoted(Object value) {
        StringBuilder out = new StringBuilder("\"");
        for (char c : String.valueOf(value).toCharArray()) {
            if (c == '"' || c == '\\') out.append('\\').append(c);
            else if (c < 32) out.append(String.format("\\u%04x", (int) c));
            else out.append(c);
        }
        return out.append('"').toString();
    }

    static void say(String name, String key, String value) {
        System.out.println("{\"case\":" + quoted(prefix + name) + ",\"" + key + "\":" + value + "}");
    }

    static String error(SQLException e) {
        // The driver adds a position and a detail to its text; what the server said is compared alone.
        String message = e.getMessage();
        if (e instanceof PSQLException p && p.getServerErrorMessage() != null) message = p.getServerErrorMessage().getMessage();
        return "{\"sqlstate\":" + quoted(e.getSQLState()) + ",\"message\":" + quoted(message) + "}";
    }

    static void check(String name, Act act) throws Exception {
        try {
            say(name, "result", quoted(act.run()));
        } catch (SQLException e) {
            SQLException first = e;
            while (first.getNextException() != null) first = first.getNextException();
            say(name, "error", error(first));
        }
    }

    static Connection connect(String... properties) throws SQLException {
        Properties p = new Properties();
        p.setProperty("user", System.getenv("PGUSER"));
        p.setProperty("password", System.getenv("PGPASSWORD"));
        p.setProperty("sslmode", System.getenv().getOrDefault("PGSSLMODE", "disable"));
        p.setProperty("ApplicationName", "matrix");
        for (int i = 0; i < properties.length; i += 2) p.setProperty(properties[i], properties[i + 1]);
        String at = System.getenv("PGHOST") + ":" + System.getenv("PGPORT");
        return DriverManager.getConnection("jdbc:postgresql://" + at + "/" + System.getenv("PGDATABASE"), p);
    }

    static String rows(ResultSet r) throws SQLException {
        StringBuilder all = new StringBuilder();
        while (r.next()) {
            for (int i = 1; i <= r.getMetaData().getColumnCount(); i++) all.append(r.getString(i)).append('|');
            all.append(';');
        }
        return all.toString();
    }

    static String ask(Connection c, String sql, Object... parameters) throws SQLException {
        try (PreparedStatement s = c.prepareStatement(sql)) {
            for (int i = 0; i < parameters.length; i++) s.setObject(i + 1, parameters[i]);
            try (ResultSet r = s.executeQuery()) { return rows(r); }
        }
    }

    static int act(Connection c, String sql) throws SQLException {
        try (Statement s = c.createStatement()) { s.execute(sql); return s.getUpdateCount(); }
    }

    static void common(Connection c) throws Exception {
        act(c, "drop table if exists matrix_jdbc cascade");
        act(c, "create table matrix_jdbc(id serial primary key, word text, made numeric(10,2) default 1.5)");
        check("batch", () -> {
            try (PreparedStatement s = c.prepareStatement("insert into matrix_jdbc(word) values (?)")) {
                for (int i = 0; i < 300; i++) { s.setString(1, "wörd " + i); s.addBatch(); }
                int[] counts = s.executeBatch();
                return counts.length + " " + counts[0];
            }
        });
        check("rows", () -> ask(c, "select * from matrix_jdbc order by id limit 3"));
        check("types", () -> ask(c, "select 1::int2, 2::int8, 1.5::float8, true, null, '2026-01-02'::date, array[1,2],"
            + " '{\"a\": 1}'::jsonb, interval '1 day', ?::text", "q'\\"));
        try (PreparedStatement s = c.prepareStatement("select word, ?::int4, ?::timestamp, ?::bytea from matrix_jdbc where id = ?")) {
            for (int i = 1; i <= 12; i++) {
                int id = i;
                check("prepared " + i, () -> {
                    s.setInt(1, id); s.setTimestamp(2, Timestamp.valueOf("2026-01-02 03:04:05.678"));
                    s.setBytes(3, new byte[] {1, 2, (byte) id}); s.setInt(4, id);
                    try (ResultSet r = s.executeQuery()) {
                        r.next();
                        return r.getString(1) + r.getInt(2) + r.getTimestamp(3) + Arrays.toString(r.getBytes(4));
                    }
                });
            }
        }
        check("generated keys", () -> {
            try (PreparedStatement s = c.prepareStatement("insert into matrix_jdbc(word) values (?), (?)", Statement.RETURN_GENERATED_KEYS)) {
                s.setString(1, "k"); s.setString(2, "l"); s.executeUpdate();
                return rows(s.getGeneratedKeys());
            }
        });
        check("unique", () -> act(c, "insert into matrix_jdbc values (1)"));
        check("syntax", () -> act(c, "selec 1"));
        check("division", () -> ask(c, "select 1/?::int", 0));
        check("no such table", () -> ask(c, "select * from no_such where a = ?", 1));
        check("bad parameter", () -> ask(c, "select ?::int", "not a number"));
        check("a batch that fails", () -> {
            try (Statement s = c.createStatement()) {
                for (int id : new int[] {9001, 1, 9002}) s.addBatch("insert into matrix_jdbc values (" + id + ")");
                return Arrays.toString(s.executeBatch());
            }
        });
        check("after it", () -> ask(c, "select count(*) from matrix_jdbc where id > 9000"));
        check("many statements", () -> {
            try (Statement s = c.createStatement()) {
                StringBuilder all = new StringBuilder();
                boolean set = s.execute("select 1; update matrix_jdbc set made = 2 where id < 4; select 'b' from generate_series(1, 2)");
                while (set || s.getUpdateCount() != -1) {
                    all.append(set ? rows(s.getResultSet()) : s.getUpdateCount()).append('/');
                    set = s.getMoreResults();
                }
                return all;
            }
        });
        check("empty", () -> act(c, ""));
        transactions(c);
        copies(c);
        settings(c);
        check("large", () -> ask(c, "select md5(?::text)", "b".repeat(3_000_000)));
        check("large result", () -> ask(c, "select repeat('r', 5000000)").length());
        check("notice", () -> {
            try (Statement s = c.createStatement()) {
                s.execute("do $$ begin raise notice 'hello'; raise warning using message = 'so', errcode = '01999'; end $$");
                StringBuilder all = new StringBuilder();
                for (SQLWarning w = s.getWarnings(); w != null; w = w.getNextWarning()) all.append(w.getSQLState()).append(w.getMessage());
                return all;
            }
        });
        check("timeout", () -> {
            try (Statement s = c.createStatement()) { s.setQueryTimeout(1); return s.execute("select pg_sleep(60)"); }
        });
        check("after the timeout", () -> ask(c, "select 'on'"));
        check("cancel", () -> cancel(c));
        check("after the cancel", () -> ask(c, "select 'on'"));
        check("notification", () -> {
            act(c, "listen tidings");
            act(c, "notify tidings, 'news'");
            StringBuilder all = new StringBuilder();
            var seen = c.unwrap(PGConnection.class).getNotifications(20000);
            for (var n : seen == null ? new org.postgresql.PGNotification[0] : seen) all.append(n.getName()).append(n.getParameter());
            act(c, "unlisten *");
            return all;
        });
        metadata(c);
        check("ddl", () -> act(c, "alter table matrix_jdbc add more int"));
        check("after ddl", () -> ask(c, "select * from matrix_jdbc order by id limit 1"));
        check("function", () -> {
            act(c, "create or replace function matrix_twice(a int, out b int) language sql as 'select a * 2'");
            try (CallableStatement s = c.prepareCall("{? = call matrix_twice(?)}")) {
                s.registerOutParameter(1, Types.INTEGER); s.setInt(2, 21); s.execute();
                return s.getInt(1);
            }
        });
        check("refcursor", () -> {
            act(c, "create or replace function matrix_rows() returns refcursor language plpgsql as"
                + " $$ declare r refcursor; begin open r for select id from matrix_jdbc order by id limit 3; return r; end $$");
            c.setAutoCommit(false);
            try (CallableStatement s = c.prepareCall("{? = call matrix_rows()}")) {
                s.registerOutParameter(1, Types.REF_CURSOR); s.execute();
                return rows((ResultSet) s.getObject(1));
            } finally { c.commit(); c.setAutoCommit(true); }
        });
        check("plan that changed", () -> {
            StringBuilder all = new StringBuilder();
            try (PreparedStatement s = c.prepareStatement("select * from matrix_jdbc where id = ?")) {
                for (int i = 0; i < 8; i++) {
                    if (i == 6) act(c, "alter table matrix_jdbc add yet_more int default 7");
                    s.setInt(1, 2);
                    try (ResultSet r = s.executeQuery()) { all.append(rows(r)); }
                }
            }
            return all;
        });
        check("drop", () -> { act(c, "drop function matrix_twice, matrix_rows"); return act(c, "drop table matrix_jdbc"); });
    }

    static String cancel(Connection c) throws Exception {
        try (Connection watcher = connect(); Statement s = c.createStatement()) {
            var pool = Executors.newSingleThreadExecutor();
            try {
                Future<?> canceller = pool.submit((Callable<Void>) () -> {
                    long end = System.nanoTime() + 30_000_000_000L;
                    String running = "select count(*) from pg_stat_activity where pid <> pg_backend_pid() and state = 'active' and query like '%matrix_sleeps%' for update";
                    // Asked within a write: on the primary, where the sleeping statement is.
                    while (System.nanoTime() < end) {
                        watcher.setAutoCommit(false);
                        act(watcher, "create temp table if not exists there(a int) on commit drop");
                        boolean seen = !ask(watcher, running.replace(" for update", "")).startsWith("0|");
                        watcher.commit();
                        if (seen) break;
                        Thread.sleep(20);
                    }
                    s.cancel();
                    return null;
                });
                try {
                    s.execute("select pg_sleep(60) /* matrix_sleeps */ from matrix_jdbc where id = 1 for update");
                } finally { canceller.get(); }
            } finally { pool.shutdown(); }
            return "not cancelled";
        }
    }

    static void transactions(Connection c) throws Exception {
        c.setAutoCommit(false);
        act(c, "update matrix_jdbc set word = 'changed' where id = 3");
        Savepoint p = c.setSavepoint();
        check("within", () -> ask(c, "select 1/0"));
        check("after the error", () -> ask(c, "select 1"));
        c.rollback(p);
        Savepoint named = c.setSavepoint("named one");
        check("after the savepoint", () -> ask(c, "select word from matrix_jdbc where id = 3"));
        c.releaseSavepoint(named);
        c.rollback();
        check("rolled back", () -> ask(c, "select word from matrix_jdbc where id = 3"));
        for (int size : new int[] {1, 50, 1000}) {
            check("fetched by " + size, () -> {
                try (Statement s = c.createStatement()) {
                    s.setFetchSize(size);
                    try (ResultSet r = s.executeQuery("select id from matrix_jdbc order by id")) {
                        int n = 0, sum = 0;
                        while (r.next()) { n++; sum += r.getInt(1); }
                        return n + " " + sum;
                    }
                }
            });
        }
        check("two cursors at once", () -> {
            try (Statement a = c.createStatement(); Statement b = c.createStatement()) {
                a.setFetchSize(5); b.setFetchSize(7);
                int sum = 0;
                try (ResultSet x = a.executeQuery("select id from matrix_jdbc order by id limit 60");
                     ResultSet y = b.executeQuery("select -id from matrix_jdbc order by id limit 50")) {
                    while (x.next()) { sum += x.getInt(1); if (y.next()) sum += y.getInt(1); }
                }
                return sum;
            }
        });
        check("a cursor left", () -> {
            try (Statement a = c.createStatement()) {
                a.setFetchSize(5);
                ResultSet x = a.executeQuery("select id from matrix_jdbc order by id"); x.next();
                return x.getInt(1);
            }
        });
        c.commit();
        c.setReadOnly(true);
        check("read only", () -> ask(c, "show transaction_read_only"));
        check("a write when read only", () -> act(c, "insert into matrix_jdbc values (9003)"));
        c.rollback();
        c.setReadOnly(false);
        c.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
        check("isolation", () -> ask(c, "show transaction_isolation"));
        c.commit();
        c.setTransactionIsolation(Connection.TRANSACTION_READ_COMMITTED);
        c.setAutoCommit(true);
        c.setReadOnly(true);
        check("read only by itself", () -> ask(c, "select count(*) from matrix_jdbc"));
        check("a write by itself when read only", () -> act(c, "insert into matrix_jdbc values (9004)"));
        c.setReadOnly(false);
        check("a write again", () -> act(c, "insert into matrix_jdbc values (9004, 'w', 3)"));
        check("holdable", () -> {
            c.setAutoCommit(false);
            try (Statement s = c.createStatement(ResultSet.TYPE_SCROLL_INSENSITIVE, ResultSet.CONCUR_READ_ONLY, ResultSet.HOLD_CURSORS_OVER_COMMIT)) {
                s.setFetchSize(10);
                ResultSet r = s.executeQuery("select id from matrix_jdbc order by id limit 30");
                c.commit();
                r.last();
                return r.getInt(1);
            } finally { c.commit(); c.setAutoCommit(true); }
        });
        check("updatable", () -> {
            try (Statement s = c.createStatement(ResultSet.TYPE_SCROLL_INSENSITIVE, ResultSet.CONCUR_UPDATABLE);
                 ResultSet r = s.executeQuery("select id, word from matrix_jdbc where id = 9004")) {
                r.next(); r.updateString("word", "by the result set"); r.updateRow();
            }
            return ask(c, "select word from matrix_jdbc where id = 9004");
        });
    }

    static void copies(Connection c) throws Exception {
        var copy = c.unwrap(PGConnection.class).getCopyAPI();
        check("copy in", () -> {
            StringBuilder rows = new StringBuilder();
            for (int i = 10000; i < 12000; i++) rows.append(i).append("\tcopied\t0\n");
            return copy.copyIn("copy matrix_jdbc(id, word, made) from stdin", new StringReader(rows.toString()));
        });
        check("copy out", () -> {
            StringWriter out = new StringWriter();
            return copy.copyOut("copy (select id from matrix_jdbc where id >= 10000) to stdout", out) + " " + out.toString().length();
        });
        check("copy that is cancelled", () -> {
            CopyIn in = copy.copyIn("copy matrix_jdbc(id) from stdin");
            byte[] row = "20000\n".getBytes(StandardCharsets.UTF_8);
            in.writeToCopy(row, 0, row.length);
            in.cancelCopy();
            return ask(c, "select count(*) from matrix_jdbc where id = 20000");
        });
        check("copy of a bad row", () -> copy.copyIn("copy matrix_jdbc(id) from stdin", new StringReader("x\n")));
        check("after it", () -> ask(c, "select count(*) from matrix_jdbc"));
        check("large object", () -> {
            c.setAutoCommit(false);
            try {
                LargeObjectManager m = c.unwrap(PGConnection.class).getLargeObjectAPI();
                long oid = m.createLO(LargeObjectManager.READWRITE);
                LargeObject o = m.open(oid, LargeObjectManager.READWRITE);
                o.write("0123456789".repeat(10_000).getBytes(StandardCharsets.UTF_8));
                o.seek(99_995);
                String tail = new String(o.read(100), StandardCharsets.UTF_8);
                int size = o.size();
                o.close();
                m.delete(oid);
                return tail + size;
            } finally { c.commit(); c.setAutoCommit(true); }
        });
    }

    static void settings(Connection c) throws Exception {
        check("set", () -> { act(c, "set timezone = 'Asia/Tokyo'"); return ask(c, "show timezone"); });
        check("set local", () -> {
            c.setAutoCommit(false);
            try { act(c, "set local work_mem = '7MB'"); return ask(c, "show work_mem"); } finally { c.commit(); c.setAutoCommit(true); }
        });
        check("after set local", () -> ask(c, "show work_mem"));
        check("set_config", () -> ask(c, "select set_config('matrix.word', ?, false)", "kept"));
        check("kept", () -> ask(c, "select current_setting('matrix.word')"));
        check("reset", () -> { act(c, "reset timezone"); return ask(c, "select current_setting('timezone') = reset_val from pg_settings where name = 'TimeZone'"); });
        check("schema", () -> { c.setSchema("pg_catalog"); return c.getSchema(); });
        c.setSchema("public");
        check("client info", () -> { c.setClientInfo("ApplicationName", "changed"); return ask(c, "show application_name"); });
        check("temp", () -> {
            act(c, "create temp table mine(x int)"); act(c, "insert into mine values (1), (2)");
            return ask(c, "select sum(x) from mine");
        });
        check("temp is gone", () -> { act(c, "drop table mine"); return ask(c, "select * from mine"); });
        check("advisory lock", () -> ask(c, "select pg_advisory_lock(77), pg_advisory_unlock(77), pg_advisory_unlock(77)"));
        check("valid", () -> c.isValid(5));
        check("a bad setting", () -> act(c, "set work_mem = 'much'"));
    }

    static void metadata(Connection c) throws Exception {
        DatabaseMetaData m = c.getMetaData();
        check("columns", () -> {
            StringBuilder all = new StringBuilder();
            try (ResultSet r = m.getColumns(null, "public", "matrix_jdbc", null)) {
                while (r.next()) all.append(r.getString("COLUMN_NAME")).append(r.getString("TYPE_NAME")).append(r.getString("COLUMN_DEF"));
            }
            return all;
        });
        check("tables", () -> { try (ResultSet r = m.getTables(null, "public", "matrix_jd%", new String[] {"TABLE"})) { return rows(r); } });
        check("keys", () -> { try (ResultSet r = m.getPrimaryKeys(null, "public", "matrix_jdbc")) { return rows(r); } });
        check("indexes", () -> { try (ResultSet r = m.getIndexInfo(null, "public", "matrix_jdbc", true, false)) { return r.next() + r.getString("INDEX_NAME"); } });
        check("schemas", () -> { try (ResultSet r = m.getSchemas(null, "public")) { return rows(r); } });
        check("product", () -> m.getDatabaseProductName() + m.getDatabaseProductVersion() + m.supportsBatchUpdates() + m.getMaxConnections());
        check("parameters", () -> {
            try (PreparedStatement s = c.prepareStatement("insert into matrix_jdbc values (?, ?, ?)")) {
                ParameterMetaData p = s.getParameterMetaData();
                return p.getParameterTypeName(1) + p.getParameterTypeName(2) + p.getParameterTypeName(3);
            }
        });
        check("result", () -> {
            try (PreparedStatement s = c.prepareStatement("select id, word from matrix_jdbc")) {
                ResultSetMetaData r = s.getMetaData();
                return r.getColumnCount() + r.getColumnTypeName(2) + r.isNullable(1) + r.isAutoIncrement(1);
            }
        });
    }

    /** A read-only transaction is served by a standby, where there is one: PGTENURE_PRIMARY names the node that it is not. */
    static String atStandby(String... way) throws Exception {
        String primary = System.getenv("PGTENURE_PRIMARY");
        if (primary == null) return "so";
        long end = System.nanoTime() + 20_000_000_000L;
        try (Connection c = connect(way)) {
            c.setAutoCommit(false);
            c.setReadOnly(true);
            while (System.nanoTime() < end) {
                String node = ask(c, "select current_setting('cluster_name')");
                c.commit();
                if (!node.equals(primary + "|;")) return "so";
                Thread.sleep(20);
            }
        }
        return "never, always on " + primary;
    }

    static void together() throws Exception {
        prefix = "together: ";
        var pool = Executors.newFixedThreadPool(8);
        List<Future<String>> all = new ArrayList<>();
        for (int i = 0; i < 8; i++) {
            int mine = i;
            all.add(pool.submit(() -> {
                StringBuilder said = new StringBuilder();
                try (Connection c = connect("prepareThreshold", "1")) {
                    act(c, "set matrix.mine = '" + mine + "'");
                    act(c, "set extra_float_digits = " + (mine % 4));
                    for (int n = 0; n < 25; n++) said.append(ask(c, "select current_setting('matrix.mine'), current_setting('extra_float_digits'), ?::int", n));
                }
                return said.toString();
            }));
        }
        for (int i = 0; i < 8; i++) say("" + i, "result", quoted(all.get(i).get()));
        pool.shutdown();
    }

    public static void main(String[] a) throws Exception {
        System.out.println("[\"version\", " + quoted(org.postgresql.Driver.getVersion()) + "]");
        String[][] ways = {
            {"prepareThreshold", "5"},
            {"prepareThreshold", "1", "reWriteBatchedInserts", "true"},
            {"prepareThreshold", "-1", "binaryTransfer", "true"},
            {"prepareThreshold", "0"},
            {"preferQueryMode", "simple"},
            {"preferQueryMode", "extendedForPrepared"},
            {"preferQueryMode", "extendedCacheEverything"},
            {"autosave", "always", "prepareThreshold", "1"},
            {"autosave", "conservative", "prepareThreshold", "1"},
            {"defaultRowFetchSize", "10", "prepareThreshold", "2"},
            {"targetServerType", "primary"},
            {"readOnlyMode", "always"},
            {"options", "-c statement_timeout=90s -c matrix.word=began"},
        };
        for (String[] way : ways) {
            prefix = String.join("=", way) + ": ";
            try (Connection c = connect(way)) { common(c); }
            check("read only at a standby", () -> atStandby(way));
        }
        prefix = "targetServerType=preferSecondary: ";
        check("connect", () -> { try (Connection c = connect("targetServerType", "preferSecondary")) { return ask(c, "select 1"); } });
        prefix = "wrong: ";
        check("password", () -> { try (Connection c = connect("password", "wrong")) { return "in"; } });
        together();
    }
}
