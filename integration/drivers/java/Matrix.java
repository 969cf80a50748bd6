import java.io.StringReader;
import java.io.StringWriter;
import java.sql.*;
import org.postgresql.PGConnection;

/** The common script with pgjdbc. Connects as the environment says. Usage: java -cp postgresql.jar Matrix.java */
public class Matrix {
    interface Act { void run() throws Exception; }

    static void say(String step, Object value) { System.out.println("[\"" + step + "\", \"" + String.valueOf(value).replace("\"", "'").replace("\n", " ") + "\"]"); }

    static void failing(String step, Act act) throws Exception {
        try { act.run(); say(step, "no error"); } catch (SQLException e) { say(step, e.getSQLState() + " " + e.getMessage()); }
    }

    static String ask(Connection c, String sql, Object... parameters) throws SQLException {
        try (PreparedStatement s = c.prepareStatement(sql)) { return ask(s, parameters); }
    }

    static String ask(PreparedStatement s, Object... parameters) throws SQLException {
        for (int i = 0; i < parameters.length; i++) s.setObject(i + 1, parameters[i]);
        StringBuilder all = new StringBuilder();
        try (ResultSet r = s.executeQuery()) {
            while (r.next()) for (int i = 1; i <= r.getMetaData().getColumnCount(); i++) all.append(r.getString(i)).append('|');
        }
        return all.toString();
    }

    static void act(Connection c, String sql) throws SQLException { try (Statement s = c.createStatement()) { s.execute(sql); } }

    public static void main(String[] a) throws Exception {
        var env = System.getenv();
        String where = "jdbc:postgresql://" + env.get("PGHOST") + ":" + env.get("PGPORT") + "/" + env.get("PGDATABASE") + "?sslmode=" + env.get("PGSSLMODE") + "&";
        if (env.containsKey("PGSSLROOTCERT")) where += "sslrootcert=" + env.get("PGSSLROOTCERT") + "&";
        Connection c = DriverManager.getConnection(where + "prepareThreshold=3", env.get("PGUSER"), env.get("PGPASSWORD"));
        say("version", org.postgresql.Driver.getVersion());
        act(c, "drop table if exists matrix_jdbc");
        act(c, "create table matrix_jdbc(id int primary key, word text)");
        try (PreparedStatement s = c.prepareStatement("insert into matrix_jdbc values (?, ?)")) {
            for (int i = 0; i < 500; i++) { s.setInt(1, i); s.setString(2, "wörd " + i); s.addBatch(); }
            say("batch", s.executeBatch().length);
        }
        say("rows", ask(c, "select * from matrix_jdbc order by id limit 3"));
        say("types", ask(c, "select 1::int2, 2::int8, 1.5::float8, true, null, '2026-01-02'::date, array[1,2], ?::text", "q'\\"));
        for (int i = 0; i < 10; i++) say("unnamed", ask(c, "select word from matrix_jdbc where id = ?", i));
        try (PreparedStatement s = c.prepareStatement("select word, ?::int4 from matrix_jdbc where id = ?")) {
            for (int i = 0; i < 10; i++) {
                s.setInt(1, i); s.setInt(2, i);
                ResultSet r = s.executeQuery(); r.next();
                say("prepared", r.getString(1) + r.getInt(2));
            }
        }
        failing("unique", () -> act(c, "insert into matrix_jdbc values (1)"));
        failing("syntax", () -> act(c, "selec 1"));
        failing("division", () -> ask(c, "select 1/?::int", 0));
        failing("a batch that fails", () -> {
            try (Statement s = c.createStatement()) {
                s.addBatch("insert into matrix_jdbc values (9001)"); s.addBatch("insert into matrix_jdbc values (1)"); s.addBatch("insert into matrix_jdbc values (9002)");
                s.executeBatch();
            }
        });
        say("after it", ask(c, "select count(*) from matrix_jdbc where id > 9000"));
        c.setAutoCommit(false);
        act(c, "update matrix_jdbc set word = 'changed' where id = 3");
        Savepoint p = c.setSavepoint();
        failing("within", () -> ask(c, "select 1/0"));
        failing("aborted", () -> ask(c, "select 1"));
        c.rollback(p);
        say("after the savepoint", ask(c, "select 1"));
        c.rollback();
        say("rolled back", ask(c, "select word from matrix_jdbc where id = 3"));
        try (Statement s = c.createStatement()) {
            s.setFetchSize(50);
            ResultSet r = s.executeQuery("select id from matrix_jdbc order by id");
            int n = 0; while (r.next()) n++;
            say("fetched in portions", n);
        }
        c.commit();
        c.setReadOnly(true);
        say("read only", ask(c, "show transaction_read_only"));
        failing("a write when read only", () -> act(c, "insert into matrix_jdbc values (9003)"));
        c.rollback();
        c.setReadOnly(false);
        c.setAutoCommit(true);
        var copy = c.unwrap(PGConnection.class).getCopyAPI();
        StringBuilder rows = new StringBuilder();
        for (int i = 10000; i < 12000; i++) rows.append(i).append("\tcopied\n");
        say("copy in", copy.copyIn("copy matrix_jdbc from stdin", new StringReader(rows.toString())));
        StringWriter out = new StringWriter();
        say("copy out", copy.copyOut("copy (select id from matrix_jdbc where id >= 10000) to stdout", out) + " " + out.toString().length());
        act(c, "set timezone = 'Asia/Tokyo'");
        say("show", ask(c, "show timezone"));
        act(c, "reset timezone");
        act(c, "create temp table mine(x int)");
        act(c, "insert into mine values (1), (2)");
        say("temp", ask(c, "select sum(x) from mine"));
        say("large", ask(c, "select md5(?::text)", "b".repeat(3_000_000)));
        say("large result", ask(c, "select repeat('r', 5000000)").length());
        try (Statement s = c.createStatement()) {
            s.execute("do $$ begin raise notice 'hello'; end $$");
            say("notice", s.getWarnings());
            s.setQueryTimeout(1);
            failing("timeout", () -> s.execute("select pg_sleep(60)"));
        }
        act(c, "listen tidings");
        act(c, "notify tidings, 'news'");
        for (var n : c.unwrap(PGConnection.class).getNotifications(5000)) say("notification", n.getName() + " " + n.getParameter());
        act(c, "unlisten *");
        try (ResultSet r = c.getMetaData().getColumns(null, null, "matrix_jdbc", null)) { while (r.next()) say("column", r.getString("COLUMN_NAME") + r.getString("TYPE_NAME")); }
        act(c, "alter table matrix_jdbc add more int");
        say("after DDL", ask(c, "select * from matrix_jdbc order by id limit 1"));
        Connection[] sharers = new Connection[2];
        PreparedStatement[] shared = new PreparedStatement[2];
        for (int i = 0; i < 2; i++) {
            sharers[i] = DriverManager.getConnection(where + "prepareThreshold=1", env.get("PGUSER"), env.get("PGPASSWORD"));
            shared[i] = sharers[i].prepareStatement("select * from matrix_jdbc where id = ?");
            for (int n = 0; n < 2; n++) say("shared", ask(shared[i], 1));
        }
        act(c, "alter table matrix_jdbc add another int default 5");
        for (int i = 0; i < 4; i++) {
            int one = i % 2;
            failing("altered", () -> say("columns", ask(shared[one], 1)));
        }
        for (Connection one : sharers) one.close();
        act(c, "drop table matrix_jdbc");
        c.close();
    }
}
