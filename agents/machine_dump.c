/*
 * Prints what an emulated machine has, from its state file: the ops in it are done again on a machine of this process.
 * It takes no lock and writes nothing, so it may run beside the agent that uses the file: then it shows the machine as
 * it was after some op.
 */
#include <stdio.h>

#include "agents/machine_impl.h"
#include "engine/arch/law.h"

struct dump {
	const struct machine *x;
	FILE *to;
};

static const char *arch_state_of(const struct machine *x, const struct backend_run *run)
{
	enum arch arch;
	const struct arch_law *law = arch_from_name(x->model->arch, &arch) ? arch_laws[arch] : NULL;

	if (!law)
		return "-";
	return law->states[run->arch ? run->arch - 1 : law->rest[run->state]].name;
}

static void print_runs(const struct dump *d, const struct machine_vm *vm, const char *id)
{
	struct backend_run run;
	uint64_t at = 0;

	for (; machine_whole_run_at(d->x, vm, at, TREE_PAGES, &run); at = run.gfn + run.count) {
		bool resident = run.state == GFN_SECURE_RESIDENT;

		fprintf(d->to, "run\t%s\t%" PRIu64 "\t%" PRIu64 "\t%s\t", id, run.gfn, run.count,
			resident                      ? "resident"
			: run.state == GFN_SECURE_OUT ? "out"
						      : gfn_state_name(run.state));
		if (resident)
			fprintf(d->to, "%" PRIu64, run.pfn);
		fprintf(d->to, "\t%s\n", arch_state_of(d->x, &run));
	}
}

static void print_machine(const struct dump *d)
{
	const struct machine *x = d->x;
	struct backend_run run;
	char id[PW_UUID_TEXT];

	fprintf(d->to, "machine\t%s\t%" PRIu64 "\t%" PRIu64 "\n", x->model->arch, x->pool.base, x->pool.frames);
	for (const struct machine_vm *vm = x->vms; vm; vm = vm->next) {
		pw_uuid_format(&vm->id, id);
		fprintf(d->to, "vm\t%s\t%s\n", id, vm_state_name(vm->state));
		print_runs(d, vm, id);
	}
	for (uint64_t at = x->pool.base; machine_frames_stuck_at(&x->frames, at, &run); at = run.pfn + run.count)
		fprintf(d->to, "stuck\t%" PRIu64 "\t%" PRIu64 "\t%s\n", run.pfn, run.count, run.why);
}

enum pw_status machine_dump(const struct machine_model *model, const char *path, FILE *to, struct pw_err *err)
{
	struct machine *x = machine_new(model);
	enum pw_status st;

	if (!x)
		return pw_fail(err, PW_NO_MEMORY, "no memory for a machine");
	st = machine_log_read(x, path, err);
	if (st == PW_OK && !x->firmware)
		st = pw_fail(err, PW_NOT_FOUND, "%s holds no machine", path);
	if (st == PW_OK)
		print_machine(&(struct dump){ x, to });
	machine_free(x);
	return st;
}
