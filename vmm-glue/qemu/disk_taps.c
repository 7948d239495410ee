int x_disk_taps;
#include "vmm-glue/qemu/internal.h"
int disk_tap_in(struct qemu *vm, unsigned i, const char *nbd, struct ft_err *err)
{
	(void)vm;
	(void)i;
	(void)nbd;
	return ft_err_set(err, 38, "no");
}
int disk_tap_out(struct qemu *vm, unsigned i, struct ft_err *err)
{
	(void)vm;
	(void)i;
	return ft_err_set(err, 38, "no");
}
