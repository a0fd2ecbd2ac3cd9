// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * screen.c - the few sequences of ECMA-48 that a list needs
 *
 * Each line is overwritten and its rest erased, so nothing flickers.
 */
#include "split-migrate/screen.h"

#include <langinfo.h>
#include <locale.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

static struct termios screen_before;
static bool screen_keys;

bool screen_colors(void)
{
    const char *term = getenv("TERM");

    return isatty(STDOUT_FILENO) && !getenv("NO_COLOR") && term && strcmp(term, "dumb") != 0;
}

bool screen_utf8(void)
{
    setlocale(LC_CTYPE, "");
    return strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
}

void screen_size(unsigned *columns, unsigned *rows)
{
    struct winsize size = {0};

    ioctl(STDOUT_FILENO, TIOCGWINSZ, &size);
    *columns = size.ws_col ? size.ws_col : 80;
    *rows = size.ws_row ? size.ws_row : 24;
}

void screen_begin(void)
{
    screen_keys = isatty(STDIN_FILENO) && tcgetattr(STDIN_FILENO, &screen_before) == 0;
    if (screen_keys) {
        struct termios raw = screen_before;
        raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
        raw.c_cc[VMIN] = 0;
        raw.c_cc[VTIME] = 0;
        tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    }
    fputs("\033[?1049h\033[?25l\033[2J", stdout);
    fflush(stdout);
}

void screen_end(void)
{
    fputs("\033[?25h\033[?1049l", stdout);
    fflush(stdout);
    if (screen_keys) {
        tcsetattr(STDIN_FILENO, TCSANOW, &screen_before);
    }
}

/* The bytes of @text's first @columns characters; those that continue a character take no column. */
static size_t screen_cut(const char *text, size_t length, unsigned columns)
{
    unsigned used = 0;
    size_t at = 0;

    while (at < length && (used < columns || ((unsigned char)text[at] & 0xc0) == 0x80)) {
        used += ((unsigned char)text[at] & 0xc0) != 0x80;
        at++;
    }
    return at;
}

void screen_draw(const char *text)
{
    unsigned columns, rows;

    screen_size(&columns, &rows);
    fputs("\033[H", stdout);
    for (unsigned row = 0; row < rows && *text; row++) {
        size_t length = strcspn(text, "\n");
        printf("%s%.*s\033[K", row ? "\r\n" : "", (int)screen_cut(text, length, columns), text);
        text += length + (text[length] == '\n');
    }
    fputs("\033[J", stdout);
    fflush(stdout);
}

int screen_wait(unsigned ms)
{
    struct pollfd pfd = {.fd = screen_keys ? STDIN_FILENO : -1, .events = POLLIN};
    char key = 0;

    if (poll(&pfd, 1, (int)ms) > 0 && read(STDIN_FILENO, &key, 1) != 1) {
        screen_keys = false; /* the terminal is gone */
    }
    return key;
}
