import java.nio.file.*;
import java.sql.*;

/** Turns with pgjdbc, until the file MATRIX_STOP exists. See turns.rs. Usage: java -cp postgresql.jar Turns.java */
public class Turns {
    static final String INSERT = "insert into matrix_turns values ('pgjdbc', ?)";
    static final String COUNT = "select count(*) from matrix_turns where driver = 'pgjdbc' and turn = ?";

    static Connection connect() throws SQLException {
        var env = System.getenv();
        String where = "jdbc:postgresql://" + env.get("PGHOST") + ":" + env.get("PGPORT") + "/" + env.get("PGDATABASE");
        return DriverManager.getConnection(where + "?sslmode=disable&prepareThreshold=3", env.get("PGUSER"), env.get("PGPASSWORD"));
    }

    static int act(Connection c, String kind, int turn, int last) throws SQLException {
        if (kind.equals("read")) {
            try (PreparedStatement s = c.prepareStatement(COUNT)) {
                s.setInt(1, last);
                try (ResultSet r = s.executeQuery()) { r.next(); return r.getInt(1); }
            }
        }
        c.setAutoCommit(kind.equals("write"));
        try (PreparedStatement s = c.prepareStatement(INSERT)) {
            s.setInt(1, turn);
            s.executeUpdate();
            if (kind.equals("block")) c.commit();
            return 1;
        } finally {
            if (kind.equals("block") && !c.isClosed()) { c.rollback(); c.setAutoCommit(true); }
        }
    }

    public static void main(String[] a) throws Exception {
        Connection c = connect();
        Path stop = Path.of(System.getenv("MATRIX_STOP"));
        String[] kinds = {"write", "block", "read"};
        int last = -1;
        for (int turn = 0; !Files.exists(stop); turn++) {
            String kind = kinds[turn % 3];
            try {
                int seen = act(c, kind, turn, last);
                if (!kind.equals("read")) last = turn;
                System.out.println((seen == 1 ? "ok " : "missing ") + turn + " " + kind);
            } catch (SQLException e) {
                System.out.println("error " + turn + " " + kind + " " + e.getSQLState() + " " + e.getMessage().replace("\n", " "));
                if (c.isClosed()) {
                    System.out.println("closed " + turn);
                    c = connect();
                }
            }
            Thread.sleep(20);
        }
        c.close();
    }
}
