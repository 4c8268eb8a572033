/* The command line of the load generator. */
#ifndef LOADGEN_OPTIONS_H
#define LOADGEN_OPTIONS_H

#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_CONNECTIONS 10000
#define MAX_MESSAGE (64u << 20)

enum exit_status { EXIT_ERRORS = 1, EXIT_WRONG_BYTES = 2, EXIT_TIME_LIMIT = 3, EXIT_USAGE = 64 };
enum mode { ECHO, HTTP, IDLE };

static struct {
    enum mode mode;
    const char *host, *port, *unix_path, *path, *expect;
    unsigned connections;
    size_t size;
    double seconds, warmup, hold, timeout;
    double rate; /* requests a second over all connections; 0: each connection sends when it was answered */
    bool json, datagrams, burst;
} option = {.host = "127.0.0.1", .path = "/", .connections = 1, .size = 1024, .seconds = 2, .hold = 60};

__attribute__((noreturn)) static void usage(const char *wrong)
{
    if (wrong)
        fprintf(stderr, "loadgen: %s\n", wrong);
    fputs("usage: loadgen echo|udp|http|idle|burst (--port P [--host H] | --unix PATH) [options]\n"
          "  --connections N  1 to 10000 (1)\n"
          "  --size BYTES     of a message, not http (1024; idle 65536)\n"
          "  --seconds S      how long to measure, not idle (2)\n"
          "  --warmup S       load before that (0)\n"
          "  --rate R         echo, http: R requests a second by a fixed schedule, latencies counted from it\n"
          "  --path P         what http asks for (/)\n"
          "  --expect TEXT    what the body of every http response has to be\n"
          "  --hold S         idle: how long to stay connected after READY, or until standard input ends (60)\n"
          "  --timeout S      the whole run's limit (warmup + seconds or hold + 10 + a second for each 1000 connections)\n"
          "  --json           print one JSON line\n",
          wrong ? stderr : stdout);
    exit(wrong ? EXIT_USAGE : 0);
}

static double number(const char *text, double low, double high, const char *name)
{
    char *end, wrong[100];
    double v = strtod(text, &end);
    if (*text && !*end && v >= low && v <= high)
        return v;
    snprintf(wrong, sizeof wrong, "--%s wants a number from %.15g to %.15g", name, low, high);
    usage(wrong);
}

static void parse_options(int argc, char **argv)
{
    enum { HOST, PORT, UNIX, CONNECTIONS, SIZE, SECONDS, WARMUP, RATE, PATH, EXPECT, HOLD, TIMEOUT, JSON, HELP };
    static const struct option known[] = {
        {"host", required_argument, NULL, HOST},       {"port", required_argument, NULL, PORT},
        {"unix", required_argument, NULL, UNIX},       {"connections", required_argument, NULL, CONNECTIONS},
        {"size", required_argument, NULL, SIZE},       {"seconds", required_argument, NULL, SECONDS},
        {"warmup", required_argument, NULL, WARMUP},   {"path", required_argument, NULL, PATH},
        {"expect", required_argument, NULL, EXPECT},   {"hold", required_argument, NULL, HOLD},
        {"timeout", required_argument, NULL, TIMEOUT}, {"json", no_argument, NULL, JSON},
        {"rate", required_argument, NULL, RATE},       {"help", no_argument, NULL, HELP},
        {0},
    };
    bool size_given = false;
    for (int which, index; (which = getopt_long(argc, argv, "", known, &index)) != -1;) {
        const char *name = which == '?' ? NULL : known[index].name;
        switch (which) {
        case HOST: option.host = optarg; break;
        case PORT: option.port = optarg; break;
        case UNIX: option.unix_path = optarg; break;
        case PATH: option.path = optarg; break;
        case EXPECT: option.expect = optarg; break;
        case CONNECTIONS: option.connections = (unsigned)number(optarg, 1, MAX_CONNECTIONS, name); break;
        case SIZE: option.size = (size_t)number(optarg, 1, MAX_MESSAGE, name), size_given = true; break;
        case SECONDS: option.seconds = number(optarg, 0.001, 86400, name); break;
        case WARMUP: option.warmup = number(optarg, 0, 86400, name); break;
        case RATE: option.rate = number(optarg, 0.001, 1e7, name); break;
        case HOLD: option.hold = number(optarg, 0, 86400, name); break;
        case TIMEOUT: option.timeout = number(optarg, 0.001, 90000, name); break;
        case JSON: option.json = true; break;
        case HELP: usage(NULL);
        default: usage("unknown option");
        }
    }
    const char *mode = optind == argc - 1 ? argv[optind] : "";
    if (strcmp(mode, "echo") == 0)
        option.mode = ECHO;
    else if (strcmp(mode, "udp") == 0)
        option.mode = ECHO, option.datagrams = true;
    else if (strcmp(mode, "http") == 0)
        option.mode = HTTP;
    else if (strcmp(mode, "idle") == 0)
        option.mode = IDLE;
    else if (strcmp(mode, "burst") == 0)
        option.mode = ECHO, option.burst = true;
    else
        usage("say what to do: echo, udp, http, idle or burst");
    if (option.rate > 0 && (option.mode == IDLE || option.burst || option.datagrams))
        usage("--rate is for echo and http");
    if (!option.port == !option.unix_path)
        usage("say where: --port or --unix");
    if (option.mode == IDLE && !size_given)
        option.size = 65536;
    if (option.timeout == 0)
        option.timeout = (option.mode == IDLE ? option.hold : option.warmup + option.seconds) + 10 + option.connections / 1000;
}

#endif
