/* An incremental parser for one HTTP/1.1 response after the other on a keep-alive connection: Content-Length and chunked
 * bodies, cut anywhere by the network. It checks framing and, when asked to, every byte of the body; it keeps neither. */
#ifndef LOADGEN_HTTP_RESPONSE_H
#define LOADGEN_HTTP_RESPONSE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define HTTP_MAX_LINE 8192
#define HTTP_MAX_BODY ((uint64_t)1 << 40)

enum http_state {
    HTTP_STATUS, /* waiting for (the rest of) the status line */
    HTTP_HEADER,
    HTTP_BODY, /* `left` bytes of a Content-Length body are to come */
    HTTP_CHUNK_SIZE,
    HTTP_CHUNK_DATA, /* `left` bytes of this chunk are to come */
    HTTP_CHUNK_END,  /* the empty line behind a chunk */
    HTTP_TRAILER,
    HTTP_DONE, /* a whole response was read */
};

struct http_response {
    enum http_state state;
    int status;
    bool chunked, close, has_length;
    uint64_t left;
    uint64_t body;     /* body bytes seen */
    char *line;        /* a line that the network cut: what came of it */
    size_t line_bytes;
};

static inline void http_reset(struct http_response *r)
{
    char *line = r->line;
    *r = (struct http_response){.line = line};
}

/* One whole line out of data[*at..n), without its line end; NULL when it isn't there yet. Sets *error when it is too long. */
static inline const char *http_line(struct http_response *r, const char *data, size_t n, size_t *at, size_t *length,
                                    const char **error)
{
    const char *from = data + *at;
    const char *end = memchr(from, '\n', n - *at);
    size_t bytes = end ? (size_t)(end - from) : n - *at;
    *at += bytes + (end != NULL);
    if (!end || r->line_bytes) {
        if (!r->line)
            r->line = malloc(HTTP_MAX_LINE);
        if (!r->line || r->line_bytes + bytes > HTTP_MAX_LINE) {
            *error = "a header line is too long";
            return NULL;
        }
        memcpy(r->line + r->line_bytes, from, bytes);
        r->line_bytes += bytes;
        if (!end)
            return NULL;
        from = r->line;
        bytes = r->line_bytes;
        r->line_bytes = 0;
    }
    *length = bytes && from[bytes - 1] == '\r' ? bytes - 1 : bytes;
    return from;
}

/* A number that is the whole of text[0..n), but for blanks around it and a chunk extension behind it. */
static inline bool http_number(const char *text, size_t n, unsigned base, uint64_t *number)
{
    size_t i = 0, digits = 0;
    uint64_t v = 0;
    while (i < n && (text[i] == ' ' || text[i] == '\t'))
        i++;
    for (; i < n; i++, digits++) {
        char c = text[i];
        unsigned d = c >= '0' && c <= '9'   ? (unsigned)(c - '0')
                     : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a') + 10
                     : c >= 'A' && c <= 'F' ? (unsigned)(c - 'A') + 10
                                            : 99;
        if (d >= base)
            break;
        v = v * base + d;
        if (v > HTTP_MAX_BODY)
            return false;
    }
    while (i < n && (text[i] == ' ' || text[i] == '\t'))
        i++;
    *number = v;
    return digits && (i == n || text[i] == ';');
}

static inline bool http_has_token(const char *text, size_t n, const char *token)
{
    size_t length = strlen(token);
    for (size_t i = 0; i + length <= n; i++)
        if (strncasecmp(text + i, token, length) == 0)
            return true;
    return false;
}

static inline const char *http_on_status(struct http_response *r, const char *line, size_t n)
{
    if (n < 12 || memcmp(line, "HTTP/1.", 7) != 0 || line[8] != ' ')
        return "not an HTTP/1.x status line";
    r->status = 0;
    for (int i = 9; i < 12; i++) {
        if (line[i] < '0' || line[i] > '9')
            return "not an HTTP/1.x status line";
        r->status = r->status * 10 + (line[i] - '0');
    }
    r->state = HTTP_HEADER;
    return NULL;
}

static inline const char *http_on_header(struct http_response *r, const char *line, size_t n)
{
    if (n == 0) { /* the end of the head */
        if (r->status / 100 == 1)
            http_reset(r);
        else if (r->status == 204 || r->status == 304)
            r->state = HTTP_DONE;
        else if (r->chunked)
            r->state = HTTP_CHUNK_SIZE;
        else if (!r->has_length)
            return "a response with neither Content-Length nor chunked encoding";
        else
            r->state = r->left ? HTTP_BODY : HTTP_DONE;
        return NULL;
    }
    const char *colon = memchr(line, ':', n);
    if (!colon)
        return "a header line without a colon";
    size_t name = (size_t)(colon - line), rest = n - name - 1;
    if (name == 14 && strncasecmp(line, "content-length", 14) == 0) {
        if (!http_number(colon + 1, rest, 10, &r->left))
            return "a Content-Length that isn't a number";
        r->has_length = true;
    } else if (name == 17 && strncasecmp(line, "transfer-encoding", 17) == 0) {
        r->chunked = http_has_token(colon + 1, rest, "chunked");
    } else if (name == 10 && strncasecmp(line, "connection", 10) == 0) {
        r->close = http_has_token(colon + 1, rest, "close");
    }
    return NULL;
}

static inline const char *http_on_chunk_size(struct http_response *r, const char *line, size_t n)
{
    if (!http_number(line, n, 16, &r->left))
        return "a chunk size that isn't a number";
    r->state = r->left ? HTTP_CHUNK_DATA : HTTP_TRAILER;
    return NULL;
}

/* Take what belongs to the current response out of data[0..n); *used says how much that was. `expect` (may be NULL) is what
 * the body of a 200 has to be. Returns NULL, or what is wrong with the response. */
static inline const char *http_feed(struct http_response *r, const char *data, size_t n, const char *expect, size_t *used)
{
    size_t at = 0;
    const char *error = NULL;
    size_t expected = expect ? strlen(expect) : 0;
    while (!error && at < n && r->state != HTTP_DONE) {
        if (r->state == HTTP_BODY || r->state == HTTP_CHUNK_DATA) {
            size_t part = r->left < n - at ? (size_t)r->left : n - at;
            if (expect && r->status == 200 && (r->body + part > expected || memcmp(expect + r->body, data + at, part) != 0))
                error = "a body that isn't the expected one";
            r->body += part;
            r->left -= part;
            at += part;
            if (!r->left)
                r->state = r->state == HTTP_BODY ? HTTP_DONE : HTTP_CHUNK_END;
            continue;
        }
        size_t length;
        const char *line = http_line(r, data, n, &at, &length, &error);
        if (!line)
            break;
        switch (r->state) {
        case HTTP_STATUS: error = http_on_status(r, line, length); break;
        case HTTP_HEADER: error = http_on_header(r, line, length); break;
        case HTTP_CHUNK_SIZE: error = http_on_chunk_size(r, line, length); break;
        case HTTP_CHUNK_END:
            r->state = HTTP_CHUNK_SIZE;
            if (length)
                error = "a chunk that is longer than its size";
            break;
        case HTTP_TRAILER:
            if (!length)
                r->state = HTTP_DONE;
            break;
        default: break;
        }
    }
    if (!error && r->state == HTTP_DONE && expect && r->status == 200 && r->body != expected)
        error = "a body that is shorter than the expected one";
    *used = at;
    return error;
}

#endif
