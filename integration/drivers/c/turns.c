/* Turns with libpq's pipeline mode, until the file MATRIX_STOP exists. See turns.rs. Each turn is one write. */
#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static PGconn *c;

static void connect_again(void)
{
	if (c)
		PQfinish(c);
	c = PQconnectdb("");
	if (PQstatus(c) != CONNECTION_OK || !PQenterPipelineMode(c)) {
		printf("%s", PQerrorMessage(c));
		exit(1);
	}
}

static void send_statement(const char *sql, const char *value)
{
	PQsendQueryParams(c, sql, value ? 1 : 0, NULL, value ? &value : NULL, NULL, NULL, 0);
}

/* The results up to the end of the last of so many units; the first error, the last tag and the last value. */
static int results(int syncs, char *state, char *message, char *tag, char *value)
{
	while (syncs > 0 && PQstatus(c) == CONNECTION_OK) {
		PGresult *r = PQgetResult(c);

		if (r == NULL)
			continue;
		if (PQresultStatus(r) == PGRES_PIPELINE_SYNC) {
			syncs--;
		} else if (PQresultStatus(r) == PGRES_FATAL_ERROR && !*state) {
			const char *code = PQresultErrorField(r, PG_DIAG_SQLSTATE);

			snprintf(state, 8, "%s", code ? code : "-");
			snprintf(message, 200, "%s", PQresultErrorMessage(r));
			message[strcspn(message, "\n")] = 0;
		} else {
			snprintf(tag, 20, "%s", PQcmdStatus(r));
			if (PQntuples(r))
				snprintf(value, 20, "%s", PQgetvalue(r, 0, 0));
		}
		PQclear(r);
	}
	return syncs == 0;
}

int main(void)
{
	const char *kinds[] = {"write", "block", "read"};
	const char *insert = "insert into matrix_turns values ('libpq pipeline', $1)";
	const char *count = "select count(*) from matrix_turns where driver = 'libpq pipeline' and turn = $1";
	char last[12] = "-1";

	setvbuf(stdout, NULL, _IOLBF, 0);
	connect_again();
	for (int turn = 0; access(getenv("MATRIX_STOP"), F_OK) != 0; turn++) {
		const char *kind = kinds[turn % 3];
		char number[12], state[8] = "", message[200] = "", tag[20] = "", value[20] = "1";
		int block = turn % 3 == 1, read = turn % 3 == 2, open;

		snprintf(number, sizeof number, "%d", turn);
		if (block) {
			send_statement("begin", NULL);
			PQpipelineSync(c);
		}
		send_statement(read ? count : insert, read ? last : number);
		PQpipelineSync(c);
		if (block) {
			send_statement("commit", NULL);
			PQpipelineSync(c);
		}
		open = results(block ? 3 : 1, state, message, tag, value);
		if (*state || !open)
			printf("error %d %s %s %s\n", turn, kind, *state ? state : "-", message);
		else if (block && strcmp(tag, "COMMIT") != 0)
			printf("error %d %s - the block ended with %s\n", turn, kind, tag);
		else if (strcmp(value, "1") != 0)
			printf("missing %d %s\n", turn, kind);
		else
			printf("ok %d %s\n", turn, kind);
		if (!read && !*state && open)
			strcpy(last, number);
		if (!open) {
			printf("closed %d\n", turn);
			connect_again();
		} else if (block && *state && PQtransactionStatus(c) != PQTRANS_IDLE) {
			/* Only when COMMIT itself was refused in a failed block would it still be open. */
			send_statement("rollback", NULL);
			PQpipelineSync(c);
			results(1, state, message, tag, value);
		}
		usleep(20000);
	}
	PQfinish(c);
	return 0;
}
