/* SPDX-License-Identifier: Apache-2.0 */
/* Log lines: one process, one sink (stderr unless replaced), one line a call, errno preserved. Any
 * thread. */
#ifndef FT_LOG_H
#define FT_LOG_H

enum ft_log_level { FT_LOG_ERROR, FT_LOG_WARN, FT_LOG_INFO, FT_LOG_DEBUG };

/* Lines above `level` are dropped before they are formatted. Start-up only. */
void ft_log_level_set(enum ft_log_level level);
/* "error" | "warn" | "info" | "debug"; returns -1 for anything else. */
int ft_log_level_parse(const char *text);

/* Lines go to sink instead of stderr (NULL: stderr again), without time and level. Tests and the
 * simulator. */
void ft_log_sink_set(void (*sink)(enum ft_log_level level, const char *line));

void ft_log(enum ft_log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define ft_error(...) ft_log(FT_LOG_ERROR, __VA_ARGS__)
#define ft_warn(...)  ft_log(FT_LOG_WARN, __VA_ARGS__)
#define ft_info(...)  ft_log(FT_LOG_INFO, __VA_ARGS__)
#define ft_debug(...) ft_log(FT_LOG_DEBUG, __VA_ARGS__)

#endif
